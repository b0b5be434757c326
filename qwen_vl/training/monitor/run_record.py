"""OUT/run.json: the origin and settings of a trained model or adapter; exports copy it into their model card."""

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from qwen_vl.adapters.adapter import WEIGHTS_FILE
from qwen_vl.checkpoint.files import read_json_or_none
from qwen_vl.data.mixing import parse_sources
from qwen_vl.data.skip_manifests import sha256
from qwen_vl.data.sources.hub_data import is_hub_name
from qwen_vl.data.sources.locating import data_files
from qwen_vl.files import read_entries

from .callbacks import METRICS_FILE

FILE = "run.json"
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "qwen-vl")
WEIGHTS = ("model*.safetensors", WEIGHTS_FILE)  # of a trained model or adapter
HERE = (
    "output_dir",
    "logging_dir",
    "cache_dir",
    "tokenized_cache",
    "resume",
    "resume_from_checkpoint",
)  # settings that mean nothing on another machine


def write(
    output_dir: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any],
    base: Mapping[str, Any],
    data_path: Any,
    eval_data_path: Any = None,
    resumed: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write run.json into an output folder, from the metrics.jsonl there; return its content.

    settings: {flag: value} of the run. base: {"name", ..} of the weights that training began with.
    data_path: as on the command line. resumed: as in `resume.settings.Settled`.
    """
    record = {
        "finished": time.strftime("%Y-%m-%d"),
        "base": base,
        "data": [entry for source in parse_sources(data_path) for entry in hashed(source.path)],
        "evaluation data": hashed(eval_data_path) if eval_data_path else [],
        "settings": portable(settings),
        "resumed": list(resumed),
        "metrics": last_metrics(read_entries(Path(output_dir, METRICS_FILE))),
        "versions": {"python": platform.python_version(), **versions()},
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n"
    Path(output_dir, FILE).write_text(text, encoding="utf-8")
    return record


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that apply on any machine."""
    return {name: value for name, value in settings.items() if name not in HERE}


def read(output_dir: str | Path) -> dict[str, Any]:
    """Return the content of an output folder's run.json; {} if it is missing or has no trained weights next to it."""
    found = read_json_or_none(output_dir, FILE) or {}
    has_weights = any(any(Path(output_dir).glob(pattern)) for pattern in WEIGHTS)
    return found if has_weights and {"settings", "metrics"} <= found.keys() else {}


def is_newer(output_dir: str | os.PathLike[str], moment: float) -> bool:
    """Return whether the run.json of an output folder was written after `moment`, in seconds since 1970."""
    return Path(output_dir, FILE).stat().st_mtime >= moment


def hashed(path: str | os.PathLike) -> list[dict[str, str]]:
    """Return [{"name", "sha256"}, ..] of a data file, or of the data files of a folder or a pattern."""
    if is_hub_name(path):
        return [{"name": str(path), "sha256": sha256(path)}]
    return [{"name": file.name, "sha256": sha256(file)} for file, _ in data_files(path)]


def earlier(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"FLAG until step N": value}: the settings of a record that were changed when the run was resumed."""
    return {
        f"{flag} until step {entry['step']}": before
        for entry in found.get("resumed", [])
        for flag, (before, _) in entry["applied"].items()
    }


def last_metrics(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of steps and the last logged losses and evaluation metrics."""
    entries = list(entries)
    found: dict[str, Any] = {"steps": max((entry["step"] for entry in entries), default=0)}
    for entry in entries:
        found |= {key: value for key, value in entry.items() if key == "loss" or key.startswith("eval_")}
    passing = ("runtime", "per_second", "generate_share")
    return {key: value for key, value in found.items() if not key.endswith(passing)}


def versions() -> dict[str, str]:
    """Return {library: version} of the installed LIBRARIES."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a clone, not installed
            continue
    return found
