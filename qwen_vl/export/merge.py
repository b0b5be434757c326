"""An adapter and its base become one standalone checkpoint, shard by shard."""

import argparse
import sys

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from qwen_vl.training import loading, saving

from . import bases, verify, writing
from .ondisk import DiskModel

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge(adapter_dir, *, output_dir, base=None, max_shard_size=writing.SHARD_SIZE, dtype="auto", trust_base=False):
    """The folder `output_dir` with the merged model: weights, configs, tokenizer and code; returns the Difference.

    The base is the one the adapter names, or `base`; its fingerprint must be the one saved at training. Memory is about
    that of one shard. The folder is written under another name, its logits compared with those of base + adapter, and
    only then renamed.
    Raises FileExistsError if `output_dir` holds anything, ValueError for another base or differing logits, OSError.
    """
    output_dir = writing.check_free(output_dir)
    base = bases.find_base(adapter_dir, base, trust_base)
    disk = DiskModel(base)
    model, tokenizer = disk.model, bases.tokenizer_of(adapter_dir, base, disk.model.config)
    disk.adapt(adapter_dir)
    dtypes = {name: DTYPES[dtype] or disk.weights.dtype(name) for name in disk.places}
    computing = dtypes["lm_head.weight"]
    prompt = [verify.picture_prompt(tokenizer, model.config)]
    before = verify.logits_from_disk(base, prompt, dtype=computing, adapter_dir=adapter_dir)
    with writing.complete(output_dir) as staging:
        model.generation_config = bases.generation_of(base, model)
        model.generation_config.chat_format = saving.CHAT_FORMAT
        writing.write_companions(staging, model, tokenizer, dtype=computing)
        write(disk, staging, dtypes, max_shard_size=max_shard_size)
        difference = verify.compare(before, verify.logits_from_disk(staging, prompt, dtype=computing))
        verify.check(difference, computing, f"{output_dir}: merged and base + adapter differ")
    return difference


def write(disk, folder, dtypes, *, max_shard_size):
    """Write the weights of an adapted DiskModel, merged, each in its dtype of `dtypes`, into a folder."""
    outlines = {
        name: torch.empty(module._parameters[leaf].shape, dtype=dtypes[name], device="meta")
        for name, (module, leaf) in disk.places.items()
    }
    pending = {}  # of the layers that were merged and are not written yet

    def read(name):
        if name not in pending:
            pending.update(merged(disk, name))
        return pending.pop(name).to(dtypes[name])

    writing.write_weights(folder, outlines, read, max_shard_size=max_shard_size)


@torch.no_grad()
def merged(disk, name):
    """{name: tensor} of a weight, and of all others in the same adapted layer, as PEFT's own arithmetic makes them.

    In float32, whatever the base is stored in, so that each weight is rounded once.
    """
    path, layer = adapted_layer(disk.model.base_model.model, name)
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


def adapted_layer(model, name):
    """(path, module) of the layer around a weight that PEFT has put in the place of the plain one, or (None, None)."""
    path = []
    for part in name.split(".")[:-1]:
        path.append(part)
        model = model.get_submodule(part)
        if isinstance(model, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            return ".".join(path), model
    return None, None


def main(argv=None):
    """Merge as the command line says and print where the result is."""
    parser = argparse.ArgumentParser(
        prog="merge_and_unload.py", description="Merge a LoRA adapter into its base: one standalone checkpoint."
    )
    parser.add_argument("adapter", help="folder of the trained adapter")
    parser.add_argument("output", help="folder to write; must not exist or be empty")
    parser.add_argument("--base", help="folder or hub name of the base, if it has moved since training")
    parser.add_argument("--max_shard_size", default="2048MB", help="largest weight file (default %(default)s)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="dtype of the result (default: the base's)")
    parser.add_argument("--trust_base", action="store_true", help="merge even if the base cannot be identified")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    loading.quiet_libraries()
    difference = merge(
        args.adapter,
        output_dir=args.output,
        base=args.base,
        max_shard_size=args.max_shard_size,
        dtype=args.dtype,
        trust_base=args.trust_base,
    )
    print(f"base + adapter and merged model agree: {difference}", file=sys.stderr)
    print(f"merged model in {args.output}")
