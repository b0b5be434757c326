"""`qwen-vl export SOURCE OUT`: a standalone folder with a card, of a model, a checkpoint of a run or an adapter."""

from qwen_vl.adapters import bases
from qwen_vl.checkpoint import loading, shard_writer
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.export.verify import verify
from qwen_vl.families import v1 as family

from . import card, merge


def export(source, *, output_dir, dtype="auto", max_shard_size=shard_writer.SHARD_SIZE):
    """The folder `output_dir` with a model's weights, configs, tokenizer, code and card; returns the Difference.

    What belongs to training (optimizer, states, logs) stays behind. Memory is that of one shard.
    Raises FileExistsError if `output_dir` holds anything, ValueError for quantised weights, OSError.
    """
    output_dir = shard_writer.check_free(output_dir)
    disk = DiskModel(source)
    if disk.weights.is_quantized:
        raise ValueError(f"{source}: is quantised, and stands alone already; copy the folder")
    model, tokenizer = disk.model, loading.load_tokenizer(source)
    dtypes = {name: merge.DTYPES[dtype] or disk.weights.dtype(name) for name in disk.places}
    computing, prompt = dtypes[family.HEAD_WEIGHT], [verify.picture_prompt(tokenizer, model.config)]
    before = verify.logits_from_disk(source, prompt, dtype=computing)
    with shard_writer.complete(output_dir) as staging:
        model.generation_config = bases.generation_of(source, model)
        shard_writer.write_companions(staging, model, tokenizer, dtype=computing)
        merge.write(disk, staging, dtypes, max_shard_size=max_shard_size)
        difference = verify.compare(before, verify.logits_from_disk(staging, prompt, dtype=computing))
        verify.check(difference, computing, f"{output_dir}: exported and original model differ")
        said = f"The weights were written in {str(computing).removeprefix('torch.')}."
        found = card.extended(card.read(source), said, **{"original against exported": str(difference)})
        card.write(staging, found, title=output_dir.name, base={"name": str(source)})
    return difference
