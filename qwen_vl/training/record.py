"""OUT/run.json: what a trained model or adapter was made from, and how; exports carry it on, and make a page of it."""

import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path

from qwen_vl.data.mixing import parse_sources
from qwen_vl.data.shards import data_files
from qwen_vl.data.skipping import sha256

from . import checkpoints
from .callbacks import METRICS_FILE, read_metrics

FILE = "run.json"
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "qwen-vl")
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")  # of a result
HERE = (
    "output_dir",
    "logging_dir",
    "cache_dir",
    "tokenized_cache",
    "resume",
    "resume_from_checkpoint",
)  # settings of a machine


def write(output_dir, *, settings, base, data_path, eval_data_path=None, resumed=()):
    """Write run.json into an output folder, from the metrics.jsonl there; returns what it says.

    settings: {flag: value} that the run used. base: {"name", ..} of the weights that training began with.
    data_path: as on the command line. resumed: as `resume_settings.Settled` has it.
    """
    record = {
        "finished": time.strftime("%Y-%m-%d"),
        "base": base,
        "data": [entry for source in parse_sources(data_path) for entry in hashed(source.path)],
        "evaluation data": hashed(eval_data_path) if eval_data_path else [],
        "settings": portable(settings),
        "resumed": list(resumed),
        "metrics": last_metrics(read_metrics(Path(output_dir, METRICS_FILE))),
        "versions": {"python": platform.python_version(), **versions()},
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n"
    Path(output_dir, FILE).write_text(text, encoding="utf-8")
    return record


def portable(settings):
    """The settings that mean something on another machine."""
    return {name: value for name, value in settings.items() if name not in HERE}


def read(output_dir):
    """What the run.json of an output folder says; {} where there is none, or no trained weights beside it."""
    found = checkpoints.read_json(output_dir, FILE) or {}
    has_weights = any(any(Path(output_dir).glob(pattern)) for pattern in WEIGHTS)
    return found if has_weights and {"settings", "metrics"} <= found.keys() else {}


def is_newer(output_dir, moment):
    """Whether the run.json of an output folder was written after a moment, in seconds since 1970."""
    return Path(output_dir, FILE).stat().st_mtime >= moment


def hashed(path: str | os.PathLike) -> list[dict[str, str]]:
    """Return [{"name", "sha256"}, ..] of a data file, or of the data files of a folder or a pattern."""
    return [{"name": file.name, "sha256": sha256(file)} for file, _ in data_files(path)]


def earlier(found):
    """{"FLAG until step N": value} of a record: the settings that applied before the run was resumed with others."""
    return {
        f"{flag} until step {entry['step']}": before
        for entry in found.get("resumed", [])
        for flag, (before, _) in entry["applied"].items()
    }


def last_metrics(entries):
    """{name: value}: steps, and the last losses and evaluation metrics that were logged."""
    found = {"steps": max((entry["step"] for entry in entries), default=0)}
    for entry in entries:
        found |= {key: value for key, value in entry.items() if key == "loss" or key.startswith("eval_")}
    passing = ("runtime", "per_second")
    return {key: value for key, value in found.items() if not key.endswith(passing)}


def versions():
    """{library: version} of what is installed of LIBRARIES."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from its folder
            continue
    return found
