"""`qwen-vl checkpoint show|export`: what a checkpoint of a run holds, and its model or adapter alone."""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from peft import get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from qwen_vl.adapters.adapter import WEIGHTS_FILE, Adapter
from qwen_vl.checkpoint import loading, quantization, shard_writer
from qwen_vl.checkpoint.files import ADAPTER_BASE, ADAPTER_CONFIG, is_adapter, read_json_or_none
from qwen_vl.training.resume import checkpoints

from . import export as exporting
from . import parts

# Of an adapter's weights.
COMPANIONS = (ADAPTER_CONFIG, ADAPTER_BASE, "*token*", "*.tiktoken", "*processor*", "*.jinja")


class Shown(NamedTuple):
    """What is printed of a checkpoint, and whether a run can resume from it."""

    text: str
    is_complete: bool


def show(folder: str | Path) -> Shown:
    """Return what a checkpoint holds. Raise FileNotFoundError for a folder that is not one."""
    folder = Path(folder)
    if not (folder / checkpoints.TRAINER_STATE).exists() and not checkpoints.is_checked(folder):
        raise FileNotFoundError(f"{folder}: no {checkpoints.TRAINER_STATE} there; give a checkpoint-N folder")
    problems, state = checkpoints.damage(folder), checkpoints.run_state(folder)
    trainer = read_json_or_none(folder, checkpoints.TRAINER_STATE) or {}
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    checked = "every hash is right" if checkpoints.is_checked(folder) else "no manifest, so files were not compared"
    rows = [
        ("complete", "no: " + checkpoints.listed(problems, most=10) if problems else f"yes ({checked})"),
        ("files", f"{len(files)}, {size:.1f} MiB"),
        ("holds", contents(folder)),
        ("step", f"{trainer.get('global_step', '?')} of {trainer.get('max_steps', '?')}"),
    ]
    if trainer.get("epoch") is not None:
        rows.append(("epoch", f"{trainer['epoch']:.4g}"))
    if data := state.get("data"):
        total = "" if data["size"] is None else f" of {data['size']}"
        seen = f"{data['seen']}{total} {data['unit']} of epoch {data['epoch'] + 1} seen"
        rows.append(("data", f"{seen}, seed {data['seed']}"))
    if "engine" in state:
        sizes = f"{state['per_device_train_batch_size']} x {state['gradient_accumulation_steps']} accumulated"
        rows.append(("engine", f"{state['engine']}, processes: {state['world_size']}, batch of each: {sizes}"))
    if trainer.get("best_metric") is not None:
        rows.append(("best", f"{trainer['best_metric']:.4f} at step {trainer.get('best_global_step')}"))
    return Shown("\n".join([str(folder), *(f"  {name:10}{text}" for name, text in rows)]), not problems)


def contents(folder: Path) -> str:
    """Return in words what is trained, and how its weights are stored."""
    kind = "adapter" if is_adapter(folder) else "model"
    if (folder / WEIGHTS_FILE).is_file() or any(folder.glob("model*.safetensors")):
        return kind
    engine = parts.engine_of(folder)
    return f"{kind}, its weights in {engine}'s parts" if engine else "no weights"


def export(folder: str | Path, output_dir: str | Path, *, dtype: str | None = None) -> None:
    """Write the folder `output_dir` with the model or the adapter of a checkpoint, for use without the training.

    A model is written as `qwen-vl export` does it. dtype: of its weights, by default what the run computed in. An
    adapter stays as it is. Raise ValueError for a damaged checkpoint, FileExistsError for a folder in use.
    """
    folder, output_dir = Path(folder), shard_writer.check_free(output_dir)
    text, _ = show(folder)
    if checkpoints.damage(folder, resumable=False):
        raise ValueError(f"{text}\nnothing is exported from it; give another checkpoint")
    if not is_adapter(folder):
        dtype = dtype or checkpoints.run_state(folder).get("dtype") or "auto"
        exporting.export(folder, output_dir=output_dir, dtype=dtype)
        return
    with shard_writer.complete(output_dir) as staging:
        write_adapter(Adapter.open(folder), staging)


def write_adapter(adapter: Adapter, staging: Path) -> None:
    """Write the adapter of a checkpoint. Raise ValueError for one that needs a changed base."""
    adapter.check_plain()
    tensors = parts.trained_weights(adapter.folder)
    if not (adapter.folder / WEIGHTS_FILE).is_file():
        tensors = named_as_saved(adapter, tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, staging / WEIGHTS_FILE, metadata={"format": "pt"})
    for path in {path for pattern in COMPANIONS for path in adapter.folder.glob(pattern) if path.is_file()}:
        shutil.copy2(path, staging)


def named_as_saved(adapter: Adapter, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter by the names that PEFT saves them under. Theirs may be those of training."""
    folder, base = adapter.folder, adapter.base
    if base is None:
        raise ValueError(f"{folder}: has no {ADAPTER_BASE}, which names its base; copy it from the run's output folder")
    config = deepcopy(adapter.config)
    config.init_lora_weights, config.base_model_name_or_path = True, None
    quantization.quiet_gptqmodel()
    adapted = get_peft_model(loading.skeleton(base["name"], loading.load_config(base["name"])), config)
    wanted = get_peft_model_state_dict(adapted)
    if wanted.keys() - tensors.keys():
        tensors = get_peft_model_state_dict(adapted, state_dict=tensors)
    lost = [name for name in wanted if name not in tensors or tensors[name].shape != wanted[name].shape]
    if lost:
        raise ValueError(f"{folder}: {len(lost)} tensors are missing, or of another shape, such as {lost[0]}")
    return {name: tensors[name] for name in wanted}
