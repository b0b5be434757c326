"""`qwen-vl export SOURCE OUT`: a standalone folder with a card, of a model, a checkpoint of a run or an adapter.

An adapter is merged into its base (`merge`), everything else is written as it is; both by `model_folder.write`.
"""

from pathlib import Path

from qwen_vl.checkpoint import shard_writer
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.export.verify import comparison
from qwen_vl.families import v1 as family

from . import card, model_folder, parts


def export(
    source: str | Path | ModelFolder,
    *,
    output_dir: str | Path,
    dtype: str = "auto",
    max_shard_size: str = shard_writer.SHARD_SIZE,
) -> comparison.Difference:
    """Write the folder `output_dir` with a model's weights, configs, tokenizer, code and card.

    What belongs to training (optimizer, states, logs) stays behind. Memory is that of one shard, or of the whole model
    if the weights of a checkpoint lie in parts. Return how far the logits of the written model are from the source's.
    Raise FileExistsError if `output_dir` holds anything, ValueError for quantized weights, OSError.
    """
    written = shard_writer.check_free(output_dir)
    folder = parts.open_folder(source)
    disk = DiskModel(folder)
    if disk.weights.is_quantized:
        raise ValueError(f"{source}: is quantized, and stands alone already; copy the folder")
    dtypes = model_folder.dtypes_of(disk, dtype)
    computing, prompt = dtypes[family.HEAD_WEIGHT], [comparison.image_prompt(folder.tokenizer, folder.config)]
    before = comparison.logits_from_disk(folder, prompt, dtype=computing)
    with shard_writer.complete(written) as staging:
        model_folder.write(staging, disk, folder.tokenizer, dtypes=dtypes, max_shard_size=max_shard_size)
        difference = comparison.compare(before, comparison.logits_from_disk(staging, prompt, dtype=computing))
        comparison.check(difference, computing, f"{output_dir}: exported and original model differ")
        said = f"The weights were written in {str(computing).removeprefix('torch.')}."
        record = card.extended(card.read(folder.path), said, **{"original against exported": str(difference)})
        card.write(staging, record, title=written.name, base={"name": str(source)})
    return difference
