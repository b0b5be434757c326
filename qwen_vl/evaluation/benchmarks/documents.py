"""Questions about documents, charts and text: DocVQA, InfographicVQA, ChartQA, OCRBench."""

from qwen_vl.evaluation import submissions
from qwen_vl.evaluation.metrics.anls import ANLS
from qwen_vl.evaluation.metrics.ocrbench import OCRBENCH
from qwen_vl.evaluation.metrics.text import RELAXED_ACCURACY
from qwen_vl.evaluation.readers import adapted, annotations, hugging_face, json_files, json_lines, tsv

from .benchmark import Benchmark, DataFile, Layout
from .files import converted, hub, table, training
from .vqa import LONG, PAPER, beside

SITE = "https://www.docvqa.org/datasets"
DOCVQA_TEST = {
    "annotations": DataFile("data/docvqa/test/test_v1.0.json", f"unpack the official test set from {SITE} there")
}
HUB_SPLITS = {"val": "validation", "test": "test"}
INFOGRAPHIC = "data/infographicsvqa/"
CHART_IMAGES = "images: unpack ChartQA (https://github.com/vis-nlp/ChartQA) in data/chartqa"

DOCUMENTS = (
    Benchmark(
        name="docvqa_val",
        title="DocVQA (val)",
        files={
            "annotations": DataFile(
                "data/docvqa/val/val_v1.0.json",
                f"unpack the official val set, with its images in documents/, from {SITE} in data/docvqa/val",
            ),
            "records": converted("docvqa/val.jsonl", optional=True),
            "shots": training("docvqa/train.jsonl"),
        },
        reader=annotations.docvqa,
        template="vqa",
        decoding=LONG,
        metric=ANLS,
        size=5349,
        layouts=(table("DocVQA_VAL"), hub("DocVQA", hugging_face.vqa, split="validation", config="DocVQA")),
        shots_reader=annotations.vqa_shots,
    ),
    Benchmark(
        name="docvqa_test",
        title="DocVQA (test)",
        files={
            "records": beside(converted("docvqa/test.jsonl"), f"images: unpack the official test set from {SITE}"),
            "shots": training("docvqa/train.jsonl"),
        },
        reader=json_lines.vqa,
        template="vqa",
        decoding=LONG,
        metric=ANLS,
        size=5188,
        published={"Qwen-VL": 65.1, "Qwen-VL-Chat": 62.6},
        published_note=PAPER,
        submission=submissions.docvqa,
        layouts=(
            Layout("official file", DOCVQA_TEST, annotations.docvqa),
            table("DocVQA_TEST"),
            hub("DocVQA", hugging_face.vqa, split="test", config="DocVQA"),
        ),
        shots_reader=annotations.vqa_shots,
        has_answers=False,
    ),
    *(
        Benchmark(
            name=f"infographicsvqa_{split}",
            title=f"InfographicVQA ({split})",
            files={
                "annotations": DataFile(
                    f"{INFOGRAPHIC}infographicsVQA_{split}_v1.0{'_withQT' if split == 'val' else ''}.json",
                    f"download it from {SITE}, its images to {INFOGRAPHIC}infographicsvqa_images/",
                ),
                "images": DataFile(f"{INFOGRAPHIC}infographicsvqa_images", f"unpack the images from {SITE} there"),
            },
            reader=annotations.docvqa,
            template="vqa",
            decoding=LONG,
            metric=ANLS,
            size=2801 if split == "val" else 3288,
            submission=submissions.docvqa if split == "test" else None,
            layouts=(
                table(f"InfoVQA_{split.upper()}"),
                hub("DocVQA", hugging_face.vqa, split=HUB_SPLITS[split], config="InfographicVQA"),
            ),
            has_answers=split == "val",
        )
        for split in ("val", "test")
    ),
)

CHARTS = (
    *(
        Benchmark(
            name=f"chartqa_test_{half}",
            title=f"ChartQA (test, {half})",
            files={
                "records": beside(converted(f"chartqa/test_{half}.jsonl"), CHART_IMAGES),
                "shots": training(f"chartqa/train_{half}.jsonl"),
            },
            reader=json_lines.vqa,
            template="vqa",
            decoding=LONG,
            metric=RELAXED_ACCURACY,
            size=1250,
            layouts=(
                table("ChartQA_TEST", adapted.only(tsv.read, "split", f"test_{half}")),
                hub("ChartQA", hugging_face.chartqa, kind=f"{half}_test", split="test"),
            ),
            shots_reader=annotations.vqa_shots,
        )
        for half in ("human", "augmented")
    ),
    Benchmark(
        name="chartqa_test",
        title="ChartQA (test, mean of human and augmented)",
        files={},
        reader=json_lines.vqa,
        template="vqa",
        decoding=LONG,
        metric=RELAXED_ACCURACY,
        published={"Qwen-VL": 65.7, "Qwen-VL-Chat": 66.3},
        published_note=PAPER,
        parts=("chartqa_test_human", "chartqa_test_augmented"),
    ),
)

TEXT = (
    Benchmark(
        name="ocrbench",
        title="OCRBench",
        files={
            "records": DataFile(
                "data/ocrbench/OCRBench.json", "download it from https://github.com/Yuliang-Liu/MultimodalOCR"
            ),
            "images": DataFile(
                "data/ocrbench/OCRBench_Images", "unpack its images, https://github.com/Yuliang-Liu/MultimodalOCR"
            ),
        },
        reader=json_files.ocrbench,
        template="vqa",
        decoding=LONG,
        metric=OCRBENCH,
        size=1000,
        layouts=(table("OCRBench", tsv.ocr_bench), hub("OCRBench", hugging_face.ocr_bench, owner="echo840")),
    ),
)
