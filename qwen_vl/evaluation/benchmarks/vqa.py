"""Questions about photographs: VQAv2, OK-VQA, TextVQA, VizWiz, GQA, OCR-VQA, AI2D."""

from collections.abc import Mapping

from qwen_vl.evaluation import submissions
from qwen_vl.evaluation.metrics.text import EXACT_MATCH, GQA
from qwen_vl.evaluation.metrics.vqa import VQA_ACCURACY
from qwen_vl.evaluation.readers import adapted, annotations, hugging_face, json_lines, tsv
from qwen_vl.evaluation.records import Decoding

from .benchmark import Benchmark, DataFile, Layout
from .files import HUB_SET, coco, converted, hub, table, training

SHORT, LONG = Decoding(max_new_tokens=10), Decoding(max_new_tokens=100)
PAPER = "Qwen-VL-Chat: from the paper or a third party's table, not from the authors' repository"
TEXTVQA_IMAGES = "images: unpack https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip in data/textvqa"
VIZWIZ_IMAGES = "images: unpack https://vizwiz.cs.colorado.edu/VizWiz_final/images/{}.zip in data/vizwiz"
VQA_FILES = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
OKVQA_FILES = "https://okvqa.allenai.org/static/data/"


def official(path: str, archive: str) -> DataFile:
    """Return a file of questions or annotations that an archive of the benchmark's authors has."""
    return DataFile(f"data/{path}", f"unpack {archive} there")


def beside(records: DataFile, images: str) -> DataFile:
    """Return a converted file whose source also says where the images come from."""
    return DataFile(records.path, f"{records.source}; {images}", records.optional)


def of_coco(files: Mapping[str, DataFile]) -> Layout:
    """Return the layout without the converted file: the official questions and annotations, and COCO's images."""
    return Layout(
        "official files", {role: files[role] for role in ("questions", "annotations", "images")}, annotations.vqa
    )


VQAV2 = {
    "records": converted("vqav2/vqav2_val.jsonl"),
    "questions": official(
        "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", f"{VQA_FILES}v2_Questions_Val_mscoco.zip"
    ),
    "annotations": official("vqav2/v2_mscoco_val2014_annotations.json", f"{VQA_FILES}v2_Annotations_Val_mscoco.zip"),
    "images": coco("val2014"),
    "shots": training("vqav2/vqav2_train.jsonl"),
}
OKVQA = {
    "records": converted("okvqa/okvqa_val.jsonl"),
    "questions": official(
        "okvqa/OpenEnded_mscoco_val2014_questions.json", f"{OKVQA_FILES}OpenEnded_mscoco_val2014_questions.json.zip"
    ),
    "annotations": official(
        "okvqa/mscoco_val2014_annotations.json", f"{OKVQA_FILES}mscoco_val2014_annotations.json.zip"
    ),
    "images": coco("val2014"),
    "shots": training("okvqa/okvqa_train.jsonl"),
}
GQA_HUB = {
    role: hub("GQA", hugging_face.gqa).files["records"] for role in ("records", "images")
}  # both configs, in one folder

ANNOTATED = (
    Benchmark(
        name="vqav2_val",
        title="VQAv2 (val)",
        files=VQAV2,
        reader=annotations.vqa,
        template="vqa",
        decoding=SHORT,
        metric=VQA_ACCURACY,
        size=214_354,
        layouts=(of_coco(VQAV2), hub("VQAv2", hugging_face.vqa, split="validation")),
        shots_reader=annotations.vqa_shots,
    ),
    Benchmark(
        name="vqav2_testdev",
        title="VQAv2 (test-dev)",
        files={
            "records": converted("vqav2/vqav2_testdev.jsonl"),
            "all_questions": DataFile(
                "data/vqav2/v2_OpenEnded_mscoco_test2015_questions.json",
                f"for a complete submission file: unpack {VQA_FILES}v2_Questions_Test_mscoco.zip there",
                optional=True,
            ),
            "images": coco("test2015"),
            "shots": training("vqav2/vqav2_train.jsonl"),
        },
        reader=adapted.vqav2_testdev,
        template="vqa",
        decoding=SHORT,
        metric=VQA_ACCURACY,
        size=107_394,
        layouts=(hub("VQAv2", hugging_face.vqa, split="testdev"),),
        published={"Qwen-VL": 78.8, "Qwen-VL-Chat": 78.2},
        submission=submissions.vqav2,
        shots_reader=annotations.vqa_shots,
        has_answers=False,
    ),
    Benchmark(
        name="okvqa_val",
        title="OK-VQA (val)",
        files=OKVQA,
        reader=annotations.vqa,
        template="vqa",
        decoding=SHORT,
        metric=VQA_ACCURACY,
        size=5046,
        published={"Qwen-VL": 58.6, "Qwen-VL-Chat": 56.6},
        published_with_shots={4: {"Qwen-VL": 63.6, "Qwen-VL-Chat": 60.6}},
        layouts=(of_coco(OKVQA), hub("OK-VQA", hugging_face.vqa, split="val2014")),
        shots_reader=annotations.vqa_shots,
    ),
    Benchmark(
        name="textvqa_val",
        title="TextVQA (val)",
        files={
            "records": beside(converted("textvqa/textvqa_val.jsonl"), TEXTVQA_IMAGES),
            "questions": converted("textvqa/textvqa_val_questions.json"),
            "annotations": converted("textvqa/textvqa_val_annotations.json"),
            "shots": training("textvqa/textvqa_train.jsonl"),
        },
        reader=annotations.vqa,
        template="vqa",
        decoding=SHORT,
        metric=VQA_ACCURACY,
        size=5000,
        published={"Qwen-VL": 63.8, "Qwen-VL-Chat": 61.5},
        published_note=PAPER,
        submission=submissions.textvqa,
        layouts=(table("TextVQA_VAL"), hub("textvqa", hugging_face.vqa, split="validation")),
        shots_reader=annotations.vqa_shots,
    ),
    Benchmark(
        name="vizwiz_val",
        title="VizWiz (val)",
        files={
            "records": beside(converted("vizwiz/vizwiz_val.jsonl"), VIZWIZ_IMAGES.format("val")),
            "questions": converted("vizwiz/vizwiz_val_questions.json"),
            "annotations": converted("vizwiz/vizwiz_val_annotations.json"),
            "shots": training("vizwiz/vizwiz_train.jsonl"),
        },
        reader=annotations.vqa,
        template="vqa",
        decoding=SHORT,
        metric=VQA_ACCURACY,
        size=4319,
        layouts=(hub("VizWiz-VQA", hugging_face.vqa, split="val"),),
        shots_reader=annotations.vqa_shots,
    ),
    Benchmark(
        name="vizwiz_test",
        title="VizWiz (test)",
        files={
            "records": beside(converted("vizwiz/vizwiz_test.jsonl"), VIZWIZ_IMAGES.format("test")),
            "shots": training("vizwiz/vizwiz_train.jsonl"),
        },
        reader=json_lines.vqa,
        template="vqa",
        decoding=SHORT,
        metric=VQA_ACCURACY,
        size=8000,
        layouts=(hub("VizWiz-VQA", hugging_face.vqa, split="test"),),
        published={"Qwen-VL": 35.2, "Qwen-VL-Chat": 38.9},
        published_with_shots={4: {"Qwen-VL": 39.1, "Qwen-VL-Chat": 44.45}},
        submission=submissions.vizwiz,
        shots_reader=annotations.vqa_shots,
        has_answers=False,
    ),
)

MATCHED = (
    Benchmark(
        name="gqa_testdev",
        title="GQA (test-dev, balanced)",
        files={
            "records": beside(
                converted("gqa/testdev_balanced.jsonl"),
                "images: unpack https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip in data/gqa",
            ),
            "shots": training("gqa/train_balanced.jsonl"),
        },
        reader=json_lines.vqa,
        template="vqa",
        decoding=SHORT,
        metric=GQA,
        size=12_578,
        published={"Qwen-VL": 59.3, "Qwen-VL-Chat": 57.5},
        layouts=(table("GQA_TestDev_Balanced"), Layout(HUB_SET, GQA_HUB, hugging_face.gqa)),
        shots_reader=annotations.vqa_shots,
    ),
    *(
        Benchmark(
            name=f"ocrvqa_{split}",
            title=f"OCR-VQA ({split})",
            files={
                "records": beside(
                    converted(f"ocrvqa/ocrvqa_{split}.jsonl"),
                    "images: see https://ocr-vqa.github.io/kvqa_ProjectFiles/README.txt",
                ),
                "shots": training("ocrvqa/ocrvqa_train.jsonl"),
            },
            reader=json_lines.vqa,
            template="vqa",
            decoding=LONG,
            metric=EXACT_MATCH,
            published={"Qwen-VL": 75.7, "Qwen-VL-Chat": 70.5} if split == "test" else {},
            published_note=PAPER if split == "test" else "",
            layouts=(table("OCRVQA_TEST"),) if split == "test" else (),
            shots_reader=annotations.vqa_shots,
        )
        for split in ("val", "test")
    ),
    Benchmark(
        name="ai2diagram_test",
        title="AI2D (test)",
        files={
            "records": beside(
                converted("ai2diagram/test.jsonl"),
                "images: unpack https://ai2-public-datasets.s3.amazonaws.com/diagrams/ai2d-all.zip in data/ai2diagram",
            ),
            "shots": training("ai2diagram/train.jsonl"),
        },
        reader=json_lines.vqa,
        template="vqa",
        decoding=SHORT,
        metric=EXACT_MATCH,
        size=3088,
        published={"Qwen-VL": 62.3, "Qwen-VL-Chat": 57.7},
        published_note=PAPER,
        layouts=(
            table("AI2D_TEST", adapted.options_in_question(tsv.read)),
            hub("ai2d", adapted.options_in_question(hugging_face.choice)),
        ),
        shots_reader=annotations.vqa_shots,
    ),
)
VQA = (*ANNOTATED, *MATCHED)
