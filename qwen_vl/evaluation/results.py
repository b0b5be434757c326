"""The results folder: which model and which run a folder is of, and what is wrong when it is of another one."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen_vl.evaluation.answering import ModelIdentity
from qwen_vl.evaluation.keys import digest
from qwen_vl.files import read_object, whole_file

MODEL, SETTINGS, SAMPLES, SCORES = "model.json", "settings.json", "samples.jsonl", "scores.json"
JUDGE = "judge"  # folder of the replies of a judge
FREE = (
    "num_records",
    "records_digest",
    "complete_size",
    "files",
    "own_data",
)  # settings that may change: keys see what matters


def model_dir(results: Path, model: ModelIdentity) -> Path:
    """Return the folder of a model: its label and the first letters of its fingerprint."""
    label = re.sub(r"[^\w.-]+", "_", model.label).strip("._") or "model"
    is_digest = re.fullmatch(r"[0-9a-f]{8,}", model.fingerprint)
    return results / f"{label}-{model.fingerprint[:8] if is_digest else digest(model.fingerprint)[:8]}"


def claim_model(folder: Path, model: ModelIdentity) -> None:
    """Make the folder of a model and its model.json; raise ValueError if the folder is of another model."""
    file, now = folder / MODEL, asdict(model)
    if file.is_file():
        before = read_json(file)
        wrong = [name for name in ("fingerprint", "tokenizer", "dtype") if before.get(name) != now[name]]
        if wrong:
            raise ValueError(
                f"{file}: is of another model ({_difference(before, now, wrong)}); give another --output_dir or "
                "--label, or move this folder away"
            )
        return
    if folder.is_dir() and any(folder.glob("*/answers*.jsonl")):
        raise ValueError(f"{folder}: has answers but no {MODEL}, so of which model is not known; move it away")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, now)


def claim_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder of a run and its settings.json; raise ValueError if it was answered with other settings."""
    file = folder / SETTINGS
    if file.is_file():
        before = read_json(file)
        wrong = [name for name in settings if name not in FREE and before.get(name) != settings[name]]
        if wrong:
            raise ValueError(
                f"{file}: the answers there were made with other settings ({_difference(before, settings, wrong)}); "
                "move that folder away, or give another --output_dir"
            )
    elif any(folder.glob("answers*.jsonl")):
        raise ValueError(f"{folder}: has answers but no {SETTINGS}, so of what is not known; move it away")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def runs(results: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (folder, settings) of every run below a results folder, in the order of the names."""
    for file in sorted(results.glob(f"*/*/{SETTINGS}")):
        yield file.parent, read_json(file)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run; raise ValueError, naming it, if there is none."""
    return read_object(path, cure="move that folder away, and evaluate again")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole."""
    with whole_file(path) as file:
        file.write((json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8"))


def _difference(before: Mapping[str, Any], now: Mapping[str, Any], names: list[str]) -> str:
    """Return the differing settings as text."""
    return ", ".join(f"{name}: {before.get(name)!r} there, {now[name]!r} now" for name in names)
