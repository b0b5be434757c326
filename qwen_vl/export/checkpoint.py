"""`qwen-vl checkpoint show DIR` and `qwen-vl checkpoint export DIR OUT`: what a checkpoint holds, and its model alone.

The weights may lie in parts, as DeepSpeed and FSDP write them; no process of the training is needed to join them.
"""

import shutil
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from qwen_vl.adapters import bases, lora_targets
from qwen_vl.checkpoint import loading, quantization, shard_writer
from qwen_vl.families import v1 as family
from qwen_vl.training.resume import checkpoints

FSDP_WEIGHTS = "pytorch_model_fsdp_0"
COMPANIONS = ("adapter_config.json", bases.BASE_FILE, "*token*", "*.tiktoken", "*processor*", "*.jinja")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def show(folder):
    """(text, is_complete): what a checkpoint holds, and whether a run can go on from it.

    Raises FileNotFoundError for a folder that is no checkpoint.
    """
    folder = Path(folder)
    if not (folder / checkpoints.TRAINER_STATE).exists() and not checkpoints.is_checked(folder):
        raise FileNotFoundError(f"{folder}: no {checkpoints.TRAINER_STATE} there; give a checkpoint-N folder")
    problems, state = checkpoints.damage(folder), checkpoints.run_state(folder)
    trainer = checkpoints.read_json(folder, checkpoints.TRAINER_STATE) or {}
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
    return "\n".join([str(folder), *(f"  {name:10}{text}" for name, text in rows)]), not problems


def contents(folder):
    """In words what is trained, and how its weights are stored."""
    kind = "adapter" if bases.is_adapter(folder) else "model"
    if any(folder.glob("adapter_model*")) or any(folder.glob("model*.safetensors")):
        return kind
    if (folder / "latest").is_file():
        return f"{kind}, its weights in DeepSpeed's parts"
    return f"{kind}, its weights in FSDP's parts" if (folder / FSDP_WEIGHTS).is_dir() else "no weights"


def export(folder, output_dir, *, dtype=None):
    """The folder `output_dir` with the model or the adapter of a checkpoint, for use without the training.

    dtype: of a model, default what the run computed in; an adapter stays as it is. Memory is that of the whole model
    where its weights lie in parts. Raises ValueError for a damaged checkpoint, FileExistsError for a folder in use.
    """
    folder, output_dir = Path(folder), shard_writer.check_free(output_dir)
    text, _ = show(folder)
    if checkpoints.damage(folder, resumable=False):
        raise ValueError(f"{text}\nnothing is exported from it; give another checkpoint")
    with shard_writer.complete(output_dir) as staging:
        if bases.is_adapter(folder):
            write_adapter(folder, staging)
        else:
            write_model(folder, staging, dtype or checkpoints.run_state(folder).get("dtype"))


def write_model(folder, staging, dtype):
    """Write the model of a checkpoint in a dtype by name, or None for that of each weight."""
    config = loading.load_config(folder)
    model, tensors = loading.skeleton(folder, config), trained_weights(folder)
    wanted = model.state_dict()
    lost = [name for name in wanted if name not in tensors or tensors[name].shape != wanted[name].shape]
    if lost:
        raise ValueError(f"{folder}: {len(lost)} weights are missing, or of another shape, such as {lost[0]}")
    dtypes = {name: DTYPES[dtype] if dtype else tensors[name].dtype for name in wanted}
    outlines = {name: torch.empty(wanted[name].shape, dtype=dtypes[name], device="meta") for name in wanted}
    tokenizer = loading.load_tokenizer(folder, config)
    shard_writer.write_companions(staging, model, tokenizer, dtype=dtypes[family.HEAD_WEIGHT])
    shard_writer.write_weights(staging, outlines, lambda name: tensors[name].to(dtypes[name]))


def write_adapter(folder, staging):
    """Write the adapter of a checkpoint; ValueError for one that goes with a base that was changed."""
    lora_targets.check_plain(folder)
    tensors = trained_weights(folder)
    if not (folder / lora_targets.WEIGHTS_FILE).is_file():
        tensors = named_as_saved(folder, tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging / lora_targets.WEIGHTS_FILE,
              metadata={"format": "pt"})  # fmt: skip
    for path in {path for pattern in COMPANIONS for path in folder.glob(pattern) if path.is_file()}:
        shutil.copy2(path, staging)


def named_as_saved(folder, tensors):
    """The tensors of an adapter by the names that PEFT saves them under, from those they have in training or these."""
    base = bases.recorded_base(folder)["name"]
    config = PeftConfig.from_pretrained(folder)
    config.init_lora_weights, config.base_model_name_or_path = True, None
    quantization.quiet_gptqmodel()
    adapted = get_peft_model(loading.skeleton(base, loading.load_config(base)), config)
    wanted = get_peft_model_state_dict(adapted)
    if wanted.keys() - tensors.keys():
        tensors = get_peft_model_state_dict(adapted, state_dict=tensors)
    lost = [name for name in wanted if name not in tensors or tensors[name].shape != wanted[name].shape]
    if lost:
        raise ValueError(f"{folder}: {len(lost)} tensors are missing, or of another shape, such as {lost[0]}")
    return {name: tensors[name] for name in wanted}


def trained_weights(folder):
    """{name: tensor} of all weights that a checkpoint holds, put together where they lie in parts."""
    whole = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob(lora_targets.WEIGHTS_FILE))
    if whole:
        return {name: tensor for file in whole for name, tensor in load_file(file).items()}
    if (folder / "latest").is_file():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        return get_fp32_state_dict_from_zero_checkpoint(str(folder))
    if (folder / FSDP_WEIGHTS).is_dir():
        return joined(folder / FSDP_WEIGHTS)
    raise FileNotFoundError(f"{folder}: holds no weights that are known here")


def joined(folder):
    """{name: tensor} of a folder that torch.distributed.checkpoint wrote."""
    from torch.distributed.checkpoint import FileSystemReader, load

    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if hasattr(entry, "size")
    }
    load(tensors, checkpoint_id=folder, no_dist=True)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
