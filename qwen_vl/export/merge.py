"""An adapter and its base become one standalone model folder, shard by shard."""

from pathlib import Path
from typing import NamedTuple

import torch

from qwen_vl.adapters import build, on_disk
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint import loading, shard_writer
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.evaluation import probe_prompts
from qwen_vl.export.verify import comparison
from qwen_vl.families import v1 as family

from . import card, model_folder

NUM_QUESTIONS = 16  # of a file, at most, on which a change of base is measured


class Merged(NamedTuple):
    """What was measured while merging."""

    difference: comparison.Difference  # base + adapter against the merged model: rounding
    change_of_base: comparison.Difference | None  # the base of the training + adapter against the merged model


def merge(
    adapter: str | Path | Adapter,
    *,
    output_dir: str | Path,
    base: str | Path | None = None,
    onto: str | Path | None = None,
    dequantize: bool = False,
    prompts_path: str | Path | None = None,
    image_folder: str | None = None,
    max_shard_size: str = shard_writer.SHARD_SIZE,
    dtype: str = "auto",
    trust_base: bool = False,
) -> Merged:
    """Write the folder `output_dir` with the merged model: weights, configs, tokenizer, code, card.

    The base is the one that the adapter names, or `base`; its fingerprint must be the one saved at training. A
    quantized base has no weights to add to: they are dequantized, or the adapter goes onto the float model `onto`. What
    that changes is measured on the conversations of `prompts_path`, or on built-in prompts. Memory is that of one
    shard. The folder gets its name only after its logits were compared with those of base + adapter.
    Raise FileExistsError if `output_dir` holds anything, ValueError for another base or differing logits, OSError.
    """
    written = shard_writer.check_free(output_dir)
    adapter = Adapter.open(adapter)
    trained_on = adapter.find_base(base, trust=trust_base)
    target = target_of(adapter, trained_on, onto, dequantize)
    tokenizer = adapter.load_tokenizer(target)
    prompt = [comparison.image_prompt(tokenizer, target.config)]
    records, folders = probe_prompts.load(prompts_path, image_folder=image_folder, limit=NUM_QUESTIONS)
    size = family.image_size(target.config)
    questions = [probe_prompts.inputs_of(record, tokenizer, size, folders) for record in records]
    disk = DiskModel(target)
    dtypes = model_folder.dtypes_of(disk, dtype)
    computing = dtypes[family.HEAD_WEIGHT]
    before = comparison.logits_from_disk(target, prompt, dtype=computing, adapter=adapter)
    trained = logits_in_training(adapter, trained_on, target, questions, computing)
    on_disk.adapt(disk, adapter)
    family.mark_as_chat(disk.plain.generation_config)
    with shard_writer.complete(written) as staging:
        model_folder.write(staging, disk, tokenizer, dtypes=dtypes, max_shard_size=max_shard_size)
        # The merged model answers both sets of prompts, opened once.
        after = comparison.logits_from_disk(staging, prompt + (questions if trained else []), dtype=computing)
        difference = comparison.compare(before, after[:1])
        comparison.check(difference, computing, f"{output_dir}: merged and base + adapter differ")
        change = comparison.compare(trained, after[1:]) if trained else None
        facts = step(trained_on, target, dequantize, difference, change)
        record = card.extended(card.read(adapter.folder), **facts)
        card.write(staging, record, title=written.name, base={"name": str(target)})
    return Merged(difference, change)


def target_of(adapter: Adapter, trained_on: ModelFolder, onto: str | Path | None, dequantize: bool) -> ModelFolder:
    """Return the model folder that an adapter is merged into. Raise ValueError, with what to do, if it cannot be."""
    if not trained_on.tensors.is_quantized:
        if onto or dequantize:
            raise ValueError(
                f"{trained_on}, the base of {adapter.folder}, is a float model: leave --onto and --dequantize out"
            )
        return trained_on
    if onto and dequantize:
        raise ValueError("--onto and --dequantize: give one of them")
    if not onto and not dequantize:
        raise ValueError(
            f"{trained_on}, the base of {adapter.folder}, is quantized, so it has no weights to add to: merge into the "
            "float model that it was made from with --onto FLOAT_MODEL, which measures what the change of base does; "
            "or make float weights of it with --dequantize, and quantize the result again with qwen-vl quantize"
        )
    if not onto:
        return trained_on
    target = ModelFolder.open(onto)
    if target.tensors.is_quantized or DiskModel(target).shapes() != DiskModel(trained_on).shapes():
        kind = "is quantized, too" if target.tensors.is_quantized else "has weights of other names or shapes"
        raise ValueError(f"--onto {onto}: {kind}; give the float model that {trained_on} was made from")
    return target


def logits_in_training(
    adapter: Adapter,
    trained_on: ModelFolder,
    target: ModelFolder,
    questions: list[comparison.ModelInputs],
    dtype: torch.dtype,
) -> list[torch.Tensor] | None:
    """Return the logits of an adapter on the weights of its training, None if it is merged into these very weights.

    If training quantized float weights while it loaded them, as base.json says, they are quantized again.
    """
    if target is not trained_on:
        return comparison.logits_from_disk(trained_on, questions, dtype=dtype, adapter=adapter)
    kind = adapter.quantization
    if kind in (None, "gptq") or trained_on.quantization:
        return None
    model = build.load_adapters(loading.load_model(trained_on, dtype=dtype, quantization=kind), adapter)
    with torch.no_grad():
        return [comparison.logits(model, inputs, comparison.LAST_POSITIONS) for inputs in questions]


def step(
    trained_on: ModelFolder,
    target: ModelFolder,
    dequantize: bool,
    difference: comparison.Difference,
    change: comparison.Difference | None,
) -> dict[str, str]:
    """Return what the card says about a merge: a sentence under "step", and what was measured."""
    name = f"`{card.short(str(target))}`"
    said = {"step": f"The adapter was merged into {name}.", "base + adapter against merged": str(difference)}
    if dequantize:
        said["step"] = f"The quantized weights of {name} were dequantized, and the adapter was merged into them."
    if change:
        other = card.short(str(trained_on))
        said["step"] += (
            f" **It was trained on a quantized base, `{other}`**, and answers a little differently than with that."
        )
        said["trained base + adapter against merged"] = str(change)
    return said
