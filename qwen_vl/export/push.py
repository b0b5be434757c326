"""`qwen-vl push FOLDER NAME`: a model or adapter folder on a hub, with its card.

What belongs to the run stays behind: optimizer, states, logs, run.json and checkpoint-N folders. Paths of the machine
that trained become their last part.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from qwen_vl.adapters.adapter import WEIGHTS_FILE, Adapter
from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.files import ADAPTER_BASE, ADAPTER_CONFIG, is_adapter, weight_files
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.hubs import names, upload
from qwen_vl.training import final_model
from qwen_vl.training.monitor import run_record

from . import card, parts

SUFFIXES = (".json", ".py", ".tiktoken", ".jinja", ".txt", ".ttf")  # of what a model folder has besides weights
OF_A_RUN = {
    run_record.FILE,
    "trainer_state.json",
    "run_state.json",
    "manifest.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
}
TERMS = ("LICENSE", "NOTICE")
TEMPLATE = "[More Information Needed]"  # in a card that PEFT wrote and that nothing filled in


def push(folder: str | Path, name: str, *, hub: str | None = None, private: bool = False) -> str:
    """Upload a model or adapter folder, and return its address on the hub. `name` may have a prefix and a revision.

    Raise FileNotFoundError or ValueError if `folder` is no model folder or is half-written, ValueError if `name` is no
    name, and what `upload.upload` raises.
    """
    repo = names.parse(names.full(name, hub=hub))
    if repo is None:
        raise ValueError(f"{name}: not a name on a hub; write OWNER/NAME, or OWNER/NAME@BRANCH")
    folder = Path(folder)
    check(folder)
    return upload.upload(repo, files_of(folder, repo.repo), private=private)


def check(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError if a folder holds no complete model or adapter."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give that of a model or an adapter")
    if (folder / final_model.COMPLETE).is_dir():
        raise ValueError(
            f"{folder}: a run was killed while it replaced the model there; start the same command again, which "
            "completes it"
        )
    if not any((folder / file).is_file() for file in ("config.json", ADAPTER_CONFIG)):
        raise FileNotFoundError(f"{folder}: has no config.json, so it is no model, or was not written to its end")
    opened = ModelFolder.open(folder)
    if opened.is_adapter:
        Adapter.open(folder).shapes()
        return
    if parts.engine_of(folder) and not parts.whole_files(folder):
        raise ValueError(f"{folder}: its weights lie in parts; `qwen-vl export {folder} OUT` joins them, push that")
    loading.check_files(folder)
    if opened.quantization in (None, "gptq"):
        loading.check_fit(folder, opened.config, loading.compare_with_files(folder, opened.config))
    _ = opened.tokenizer  # checked to fit


def files_of(folder: Path, repo: str) -> dict[str, Path | bytes]:
    """Return {path in the repository: file or content} of what is uploaded, the card included."""
    found: dict[str, Path | bytes] = {file.name: file for file in weights_and_companions(folder)}
    for file in (ADAPTER_BASE, ADAPTER_CONFIG):
        if file in found:
            found[file] = portable(folder / file)
    found["README.md"] = card_of(folder, repo).encode()
    return found


def weights_and_companions(folder: Path) -> Iterator[Path]:
    """Yield the files of a model or adapter folder that others need."""
    yield from [folder / WEIGHTS_FILE] if is_adapter(folder) else map(Path, weight_files(folder))
    for file in sorted(folder.iterdir()):
        is_wanted = file.suffix in SUFFIXES or file.name in TERMS
        if file.is_file() and is_wanted and not file.name.startswith(".") and file.name not in OF_A_RUN:
            yield file


def portable(file: Path) -> bytes:
    """Return a JSON file of an adapter in which the base is no path of this machine."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for key in ("name", "base_model_name_or_path"):
        if isinstance(content.get(key), str):
            content[key] = card.short(content[key])
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def card_of(folder: Path, repo: str) -> str:
    """Return the card to upload: that of the folder, or a new one, with a sample that loads the model from the hub."""
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else TEMPLATE
    if TEMPLATE not in text:
        return text.replace(f'from_pretrained("{folder.resolve().name}"', f'from_pretrained("{repo}"')
    record = card.read(folder)
    if is_adapter(folder):
        base = (Adapter.open(folder).base or {}).get("name") or Adapter.open(folder).config.base_model_name_or_path
        return card.adapter_text({"base": {"name": base or "unknown"}} | record, repo)
    return card.text({"base": {"name": "unknown"}} | record, repo)
