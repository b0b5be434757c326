"""A conversation file of the user's own, as a benchmark: the last answer of each conversation is the right one."""

from collections.abc import Mapping
from pathlib import Path

from qwen_vl.evaluation.benchmarks.benchmark import Benchmark, DataFile
from qwen_vl.evaluation.metrics.own_data import OWN_DATA, check_records
from qwen_vl.evaluation.prompts import CONVERSATION
from qwen_vl.evaluation.readers import conversations
from qwen_vl.evaluation.records import Decoding, Record

PREFIX = "data-"  # so that no file has the name of a benchmark
MAX_NEW_TOKENS = 256


def own_data(path: str | Path, image_folder: str | Path | None = None) -> Benchmark:
    """Return the benchmark of a conversation file; it is asked in the chat format of training, answers with boxes."""
    file = Path(path).resolve()
    files = {"records": DataFile(str(file), "give an existing conversation file to --data")}
    if image_folder is not None:
        files["images"] = DataFile(str(Path(image_folder).resolve()), "give an existing folder to --image_folder")
    return Benchmark(
        name=PREFIX + file.stem,
        title=file.name,
        files=files,
        reader=_read,
        template=CONVERSATION,
        decoding=Decoding(MAX_NEW_TOKENS, end="im_end", keep_boxes=True),
        metric=OWN_DATA,
        style="chat",
    )


def _read(files: Mapping[str, Path]) -> list[Record]:
    """Return the records of the file; raise ValueError for one that cannot be scored."""
    records = conversations.read(files)
    check_records(records)
    return records
