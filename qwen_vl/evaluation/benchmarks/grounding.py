"""Boxes for expressions: RefCOCO, RefCOCO+, RefCOCOg, GRIT."""

import functools

from qwen_vl.evaluation import submissions
from qwen_vl.evaluation.metrics import grounding as metrics
from qwen_vl.evaluation.readers import hugging_face, json_lines
from qwen_vl.evaluation.records import Decoding

from .benchmark import Benchmark, DataFile
from .files import coco, converted, hub

# The answer is not stripped. Box tags vanish, as the end of a box would cut nothing else off.
BOX = Decoding(max_new_tokens=28, min_new_tokens=10, strip=False)
HUB_NAMES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCOplus", "refcocog": "RefCOCOg"}
TITLES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}
REFCOCO = {  # (data set, split): records, Qwen-VL, Qwen-VL-Chat
    ("refcoco", "val"): (10_834, 89.36, 88.55),
    ("refcoco", "testA"): (5657, 92.26, 92.27),
    ("refcoco", "testB"): (5095, 85.34, 84.51),
    ("refcoco+", "val"): (10_758, 83.12, 82.82),
    ("refcoco+", "testA"): (5726, 88.25, 88.59),
    ("refcoco+", "testB"): (4889, 77.21, 76.79),
    ("refcocog", "val"): (4896, 85.58, 85.96),
    ("refcocog", "test"): (9602, 85.48, 86.32),
}
GRIT_SITE = "https://grit-benchmark.org"

GROUNDING = (
    *(
        Benchmark(
            name=f"{name}_{split}",
            title=f"{TITLES[name]} ({split})",
            files={"records": converted(f"{name}/{name}_{split}.jsonl"), "images": coco("train2014")},
            reader=json_lines.grounding,
            template="grounding",
            decoding=BOX,
            metric=metrics.GROUNDING,
            size=size,
            published={"Qwen-VL": base, "Qwen-VL-Chat": chat},
            layouts=(hub(HUB_NAMES[name], hugging_face.grounding, split=split),),
        )
        for (name, split), (size, base, chat) in REFCOCO.items()
    ),
    *(
        Benchmark(
            name=f"grit_{split}",
            title=f"GRIT refexp ({split})",
            files={
                "records": DataFile(
                    f"data/grit/samples/{split}/refexp.json", f"download GRIT from {GRIT_SITE} to data/grit"
                ),
                "images": DataFile("data/grit/images", f"download GRIT's images from {GRIT_SITE} there"),
            },
            reader=functools.partial(json_lines.grit, split=split),
            template="grounding",
            decoding=BOX,
            metric=metrics.GRIT,
            published={"Qwen-VL": 78.22} if split == "test" else {},
            submission=submissions.grit,
            has_answers=split == "ablation",
        )
        for split in ("ablation", "test")
    ),
)
