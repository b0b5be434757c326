"""Yes/no questions about hallucinations: POPE and HallusionBench."""

from qwen_vl.evaluation.metrics.yes_no import HALLUSION, POPE
from qwen_vl.evaluation.readers import hugging_face, json_files, tsv

from .benchmark import Benchmark, DataFile
from .files import coco, hub, table
from .vqa import SHORT

POPE_SITE = "https://github.com/AoiDragon/POPE/tree/main/output/coco"
LISTED = "from VLMEvalKit's table, with its own prompts"

HALLUCINATION = (
    Benchmark(
        name="pope",
        title="POPE (random, popular, adversarial)",
        files={
            **{
                split: DataFile(f"data/pope/coco_pope_{split}.json", f"download it from {POPE_SITE}")
                for split in json_files.POPE_SPLITS
            },
            "images": coco("val2014"),
        },
        reader=json_files.pope,
        template="vqa",
        decoding=SHORT,
        metric=POPE,
        size=9000,
        layouts=(table("POPE", tsv.pope), hub("POPE", hugging_face.pope)),
    ),
    Benchmark(
        name="hallusionbench",
        title="HallusionBench (questions with an image)",
        files={
            "records": DataFile(
                "data/hallusion_bench/HallusionBench.json",
                "download it, and hallusion_bench.zip for data/, from https://github.com/tianyi-lab/HallusionBench",
            )
        },
        reader=json_files.hallusion_bench,
        template="vqa",
        decoding=SHORT,
        metric=HALLUSION,
        size=951,
        published={"Qwen-VL": 57.6, "Qwen-VL-Chat": 56.4},
        published_figures={
            "fAcc": {"Qwen-VL": 12.4, "Qwen-VL-Chat": 27.7},
            "qAcc": {"Qwen-VL": 19.6, "Qwen-VL-Chat": 26.4},
        },
        published_note=LISTED,
        layouts=(
            table("HallusionBench", tsv.hallusion_bench),
            hub("HallusionBench", hugging_face.hallusion_bench, split="image"),
        ),
    ),
)
