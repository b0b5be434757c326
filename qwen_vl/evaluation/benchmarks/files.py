"""Where the files of several benchmarks come from, and where they go. Paths are relative to --data_dir."""

import functools
from collections.abc import Callable, Sequence

from qwen_vl.evaluation.readers import tsv
from qwen_vl.evaluation.records import Record

from .benchmark import DataFile, Layout, Reader

CONVERTED = "https://ofasys-wlcb.oss-cn-wulanchabu.aliyuncs.com/Qwen-VL/evaluation/"  # by the model's authors
TABLES = "https://opencompass.openxlab.space/utils/"  # of VLMEvalKit
TABLE = "VLMEvalKit table"
HUB = "https://huggingface.co/datasets/"
HUB_SET = "Hugging Face data set"


def converted(path: str, *, optional: bool = False) -> DataFile:
    """Return a file that the model's authors offer in converted form; path: FOLDER/FILE below data/."""
    return DataFile(f"data/{path}", f"download {CONVERTED}{path.replace('+', '%2B')}", optional)


def training(path: str) -> DataFile:
    """Return a converted training file, from which solved examples are drawn."""
    return converted(path, optional=True)


def coco(subset: str) -> DataFile:
    """Return the folder of a subset of COCO's images."""
    return DataFile(f"data/coco/{subset}", f"unpack http://images.cocodataset.org/zips/{subset}.zip in data/coco")


def table(name: str, reader: Reader = tsv.read) -> Layout:
    """Return the layout of a VLMEvalKit table, NAME.tsv in data/vlmevalkit/; its image files go beside it."""
    path = f"data/vlmevalkit/{name}.tsv"
    return Layout(TABLE, {"records": DataFile(path, f"download {name}.tsv, see {TABLES}")}, reader)


def hub(name: str, reader: Callable[..., Sequence[Record]], *, owner: str = "lmms-lab", **options: str) -> Layout:
    """Return the layout of a data set of the hub, copied to data/hugging_face/NAME; options: what `reader` is told."""
    files = {"records": DataFile(f"data/hugging_face/{name}", f"copy {HUB}{owner}/{name} there")}
    return Layout(HUB_SET, files, functools.partial(reader, **options))
