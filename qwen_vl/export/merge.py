"""An adapter and its base become one standalone checkpoint, shard by shard."""

from typing import NamedTuple

import torch
from peft.utils.other import AuxiliaryTrainingWrapper

from qwen_vl.adapters import bases, on_disk
from qwen_vl.adapters.on_disk import adapted_layer
from qwen_vl.checkpoint import shard_writer
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.export.verify import base_change, verify
from qwen_vl.families import v1 as family

from . import card

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Merged(NamedTuple):
    """What was measured while merging."""

    difference: verify.Difference  # base + adapter against the merged model: rounding
    change_of_base: verify.Difference | None  # the base of the training + adapter against the merged model


def merge(
    adapter_dir,
    *,
    output_dir,
    base=None,
    onto=None,
    dequantize=False,
    prompts_path=None,
    image_folder=None,
    max_shard_size=shard_writer.SHARD_SIZE,
    dtype="auto",
    trust_base=False,
):
    """The folder `output_dir` with the merged model: weights, configs, tokenizer, code, card; returns a Merged.

    The base is the one the adapter names, or `base`; its fingerprint must be the one saved at training. Memory is about
    that of one shard. The folder is written under another name, its logits compared with those of base + adapter, and
    only then renamed.
    A quantised base has no weights to add to: they are dequantised, or the adapter goes onto the float model `onto`.
    What that changes is measured on the conversations of `prompts_path`, or on built-in prompts.
    Raises FileExistsError if `output_dir` holds anything, ValueError for another base or differing logits, OSError.
    """
    output_dir = shard_writer.check_free(output_dir)
    trained_on = bases.find_base(adapter_dir, base, trust_base)
    base = target_of(adapter_dir, trained_on, onto, dequantize)
    disk = DiskModel(base)
    model, tokenizer = disk.model, bases.load_tokenizer(adapter_dir, base, disk.model.config)
    prompt = [verify.picture_prompt(tokenizer, model.config)]
    questions = base_change.inputs_for(tokenizer, model.config, prompts_path, image_folder)
    on_disk.adapt(disk, adapter_dir)
    dtypes = {name: DTYPES[dtype] or disk.weights.dtype(name) for name in disk.places}
    computing = dtypes[family.HEAD_WEIGHT]
    before = verify.logits_from_disk(base, prompt, dtype=computing, adapter_dir=adapter_dir)
    trained = base_change.logits_in_training(adapter_dir, trained_on, onto, questions, computing)
    with shard_writer.complete(output_dir) as staging:
        model.generation_config = bases.generation_of(base, model)
        family.mark_as_chat(model.generation_config)
        shard_writer.write_companions(staging, model, tokenizer, dtype=computing)
        write(disk, staging, dtypes, max_shard_size=max_shard_size)
        difference = verify.compare(before, verify.logits_from_disk(staging, prompt, dtype=computing))
        verify.check(difference, computing, f"{output_dir}: merged and base + adapter differ")
        change = trained and verify.compare(trained, verify.logits_from_disk(staging, questions, dtype=computing))
        found = card.extended(card.read(adapter_dir), **step(trained_on, base, dequantize, difference, change))
        card.write(staging, found, title=output_dir.name, base={"name": str(base)})
    return Merged(difference, change)


def target_of(adapter_dir, trained_on, onto, dequantize):
    """The checkpoint that an adapter is merged into; ValueError where it cannot be, with what to do instead."""
    if not DiskModel(trained_on).weights.is_quantized:
        if onto or dequantize:
            raise ValueError(
                f"{trained_on}, the base of {adapter_dir}, is a float model: leave --onto and --dequantize out"
            )
        return trained_on
    if onto and dequantize:
        raise ValueError("--onto and --dequantize: give one of them")
    if not onto and not dequantize:
        raise ValueError(
            f"{trained_on}, the base of {adapter_dir}, is quantised, so it has no weights to add to: merge into the "
            "float model that it was made from with --onto FLOAT_MODEL, which measures what the change of base does; "
            "or make float weights of it with --dequantize, and quantise the result again with qwen-vl quantize"
        )
    if onto:
        there, wanted = DiskModel(onto), DiskModel(trained_on)
        if there.weights.is_quantized or there.shapes() != wanted.shapes():
            kind = "is quantised, too" if there.weights.is_quantized else "has weights of other names or shapes"
            raise ValueError(f"--onto {onto}: {kind}; give the float model that {trained_on} was made from")
    return onto or trained_on


def step(trained_on, base, dequantize, difference, change):
    """What the card says about a merge."""
    name = f"`{card.short(str(base))}`"
    said = {"step": f"The adapter was merged into {name}.", "base + adapter against merged": str(difference)}
    if dequantize:
        said["step"] = f"The quantised weights of {name} were dequantised, and the adapter was merged into them."
    if change:
        other = card.short(str(trained_on))
        said["step"] += (
            f" **It was trained on a quantised base, `{other}`**, and answers a little differently than with that."
        )
        said["trained base + adapter against merged"] = str(change)
    return said


def write(disk, folder, dtypes, *, max_shard_size):
    """Write the weights of a DiskModel, an adapter merged into them, each in its dtype of `dtypes`, into a folder."""
    outlines = {
        name: torch.empty(module._parameters[leaf].shape, dtype=dtypes[name], device="meta")
        for name, (module, leaf) in disk.places.items()
    }
    pending = {}  # of the layers that were merged and are not written yet

    def read(name):
        if name not in pending:
            pending.update(merged(disk, name))
        return pending.pop(name).to(dtypes[name])

    shard_writer.write_weights(folder, outlines, read, max_shard_size=max_shard_size)


@torch.no_grad()
def merged(disk, name):
    """{name: tensor} of a weight, and of all others in the same adapted layer, as PEFT's own arithmetic makes them.

    In float32, whatever the base is stored in, so that each weight is rounded once.
    """
    path, layer = adapted_layer(disk.model, name)
    if layer is None:
        value = disk.current(name)
        return {name: disk.weights.read(name) if value is None else value}
    filled = disk.fill([other for other in disk.places if other.startswith(f"{path}.")], dtype=torch.float32)
    try:
        if isinstance(layer, AuxiliaryTrainingWrapper):  # saved whole, or some of its rows
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            layer.merge(safe_merge=True)
            plain = layer.get_base_layer()
    except RuntimeError as error:
        raise ValueError(f"{path}: this adapter cannot be merged: {error}") from error
    tensors = {f"{path}.{leaf}": parameter.data for leaf, parameter in plain.named_parameters()}
    disk.empty(filled)
    return tensors
