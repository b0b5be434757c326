"""`qwen-vl export SOURCE OUT`: a standalone folder with a card, of a model, a checkpoint of a run or an adapter."""

import argparse

from qwen_vl.families import v1 as family
from qwen_vl.training import loading

from . import bases, card, merge, verify, writing
from .ondisk import DiskModel


def export(source, *, output_dir, dtype="auto", max_shard_size=writing.SHARD_SIZE):
    """The folder `output_dir` with a model's weights, configs, tokenizer, code and card; returns the Difference.

    What belongs to training (optimizer, states, logs) stays behind. Memory is that of one shard.
    Raises FileExistsError if `output_dir` holds anything, ValueError for quantised weights, OSError.
    """
    output_dir = writing.check_free(output_dir)
    disk = DiskModel(source)
    if disk.weights.is_quantized:
        raise ValueError(f"{source}: is quantised, and stands alone already; copy the folder")
    model, tokenizer = disk.model, loading.load_tokenizer(source)
    dtypes = {name: merge.DTYPES[dtype] or disk.weights.dtype(name) for name in disk.places}
    computing, prompt = dtypes[family.HEAD_WEIGHT], [verify.picture_prompt(tokenizer, model.config)]
    before = verify.logits_from_disk(source, prompt, dtype=computing)
    with writing.complete(output_dir) as staging:
        model.generation_config = bases.generation_of(source, model)
        writing.write_companions(staging, model, tokenizer, dtype=computing)
        merge.write(disk, staging, dtypes, max_shard_size=max_shard_size)
        difference = verify.compare(before, verify.logits_from_disk(staging, prompt, dtype=computing))
        verify.check(difference, computing, f"{output_dir}: exported and original model differ")
        said = f"The weights were written in {str(computing).removeprefix('torch.')}."
        found = card.extended(card.read(source), said, **{"original against exported": str(difference)})
        card.write(staging, found, title=output_dir.name, base={"name": str(source)})
    return difference


def main(argv=None):
    """Export as the command line says; an adapter is merged as `qwen-vl merge` does it."""
    args = make_parser().parse_args(argv)
    if bases.is_adapter(args.adapter):
        return merge.run(args)
    wrong = [f"--{name}" for name in ("base", "onto", "dequantize", "prompts", "trust_base") if vars(args)[name]]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: for an adapter, which {args.adapter} is not")
    export(args.adapter, output_dir=args.output, dtype=args.dtype, max_shard_size=args.max_shard_size)
    print(f"model and card in {args.output}")


def make_parser():
    """The parser of `qwen-vl export`."""
    parser = argparse.ArgumentParser(
        prog="qwen-vl export", description="Write a standalone model with a model card.", allow_abbrev=False
    )
    parser.add_argument("adapter", metavar="source", help="folder of a model, of a checkpoint-N, or of an adapter")
    parser.add_argument("output", help="folder to write; must not exist or be empty")
    merge.add_options(parser)
    return parser
