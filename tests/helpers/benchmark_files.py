"""Files of every benchmark of the registry, with a record or two, in each of its layouts."""

import base64
import functools
import io
import json

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from qwen_vl.evaluation.benchmarks.files import HUB_SET, TABLE
from qwen_vl.evaluation.benchmarks.loading import SHOTS
from qwen_vl.evaluation.readers import (
    adapted,
    annotations,
    hugging_face,
    json_files,
    json_lines,
    mme_folder,
    seed_bench,
    tsv,
)

PNG = io.BytesIO()
Image.new("RGB", (8, 6)).save(PNG, "PNG")
IMAGE = "data/coco/val2014/COCO_val2014_000000000042.jpg"  # of a COCO file, and as good as any other


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list) and path.suffix == ".jsonl":
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_questions(files, answers="red", name="records"):
    row = {"image": IMAGE, "question": "what color?", "question_id": 7}
    write(files[name], [row | ({"answer": answers} if answers else {})])


def write_vqa(files):
    if "records" in files:
        write_questions(files)
    write(
        files["questions"],
        {"data_subtype": "val2014", "questions": [{"question_id": 7, "image_id": 42, "question": "what color?"}]},
    )
    answers = [{"answer_id": number, "answer": "red"} for number in range(10)]
    write(files["annotations"], {"annotations": [{"question_id": 7, "image_id": 42, "answers": answers}]})


def write_testdev(files):
    write_questions(files, answers=None)
    write(files["all_questions"], {"questions": [{"question_id": 7}, {"question_id": 8}]})


def write_documents(files):
    row = {"questionId": 7, "question": "what color?", "image": IMAGE, "answers": ["red"]}
    write(files["annotations"], {"data": [row]})
    if "records" in files:
        write_questions(files)


def write_captions(files):
    notes = [{"id": 1, "image_id": 42, "caption": "a cat"}]
    write(files["records"], {"images": [{"id": 42, "image": IMAGE}], "annotations": notes})
    if "domains" in files:
        write(files["domains"], {"images": [{"id": 42, "file_name": "x.jpg", "domain": "in-domain"}]})


def write_boxes(files):
    write(files["records"], [{"image": IMAGE, "sent": "cat", "bbox": [1, 2, 3, 4], "width": 8, "height": 6}])


def write_grit(files):
    write(files["records"], [{"example_id": "r1", "image_id": IMAGE, "task_query": "cat", "bbox": [1, 2, 3, 4]}])


def write_science(files):
    row = {"image": "data/coco/val2014/../val2014/COCO_val2014_000000000042.jpg", "hint": "", "question": "what?"}
    write(files["records"], [row | {"choices": ["None", "NA"], "answer": 0}])
    write(files["problems"], {"val2014": {"subject": "natural science", "topic": "biology", "grade": "grade2"}})


def write_rotations(files):
    row = {"index": 3, "image": IMAGE, "hint": "", "question": "what?", "choices": ["None", "NA"], "answer": 0}
    write(files["records"], [row, row | {"index": 1_000_003}])


def write_prompts(files):
    prompt = f"<img>{IMAGE}</img>\nQuestion: what?\nOptions: A. a\nB. b\nC. c\nD. None\nAnswer:"
    write(files["questions"], {"questions": [{"question_id": q, "question_type_id": 1} for q in ("1", "v0")]})
    for role, name in (("records", "1"), ("video_records", "v0")):
        if role in files:
            write(files[role], [{"question_id": name, "prompt": prompt, "answer": "D"}])


def write_seed(files):
    row = {f"choice_{letter}": letter for letter in "abcd"} | {"question": "what?", "answer": "D"}
    image = {"question_id": "1", "question_type_id": 1, "data_type": "image", "data_id": "1.png"}
    video = {"question_id": "v0", "question_type_id": 10, "data_type": "video", "data_id": "1.webm"}
    write(files["records"], {"questions": [row | image, row | video]})
    if "images" in files:
        write_png(files["images"] / "1.png")
    if any(role.startswith("clips") for role in files):
        for role in ("clips_10", "clips_11", "clips_12"):
            files[role].mkdir(parents=True)
        (files["clips_10"] / "1.webm").write_bytes(b"no clip, but it is there")
        del files["frames"]
    if "frames" in files:
        for number in range(4):
            write_png(files["frames"] / f"v0_{number}.jpg")


def write_mme(files):
    for subtask in (*mme_folder.BESIDE, *mme_folder.APART):
        apart = subtask in mme_folder.APART
        write(
            files["records"] / subtask / ("questions_answers_YN" if apart else "") / "1.txt", "Is it?\tYes\nNo?\tNo\n"
        )
        write_png(files["records"] / subtask / ("images" if apart else "") / "1.jpg")


def write_pope(files):
    for split in json_files.POPE_SPLITS:
        row = {"question_id": 1, "image": IMAGE.rpartition("/")[2], "text": "Is it?", "label": "yes"}
        write(files[split], json.dumps(row) + "\n")


def write_hallusion(files):
    row = {"category": "VD", "subcategory": "chart", "visual_input": "1", "set_id": "0", "figure_id": "1"}
    row |= {"question_id": "0", "question": "Is it?", "gt_answer": "1", "filename": "./1.png"}
    write(files["records"], [row])
    write_png(files["records"].parent / "1.png")


def write_ocrbench(files):
    row = {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "image_path": "1.png", "question": "what?"}
    write(files["records"], [row | {"answers": ["red"]}])
    write_png(files["images"] / "1.png")


def table(**values):
    def writer(files):
        row = {"index": "3", "image": base64.b64encode(PNG.getvalue()).decode(), "question": "what?"} | values
        write(files["records"], "\n".join("\t".join(cells) for cells in (row, row.values())) + "\n")

    return writer


LETTERS = {"A": "None", "B": "NA", "answer": "A", "category": "Scene Understanding", "l2-category": "x"}
TOUCHSTONE = {"human_annotation": "a cat", "gpt4_ha_answer": "cat", "category": "basic", "task_name": "1.1"}
WRITERS = {
    json_lines.vqa: write_questions,
    json_lines.grounding: write_boxes,
    json_lines.grit: write_grit,
    json_lines.science_qa: write_science,
    json_lines.mmbench: write_rotations,
    json_lines.seed_bench: write_prompts,
    annotations.vqa: write_vqa,
    annotations.docvqa: write_documents,
    annotations.captions: write_captions,
    adapted.vqav2_testdev: write_testdev,
    adapted.seed_table: table(**LETTERS),
    seed_bench.read: write_seed,
    mme_folder.read: write_mme,
    json_files.pope: write_pope,
    json_files.hallusion_bench: write_hallusion,
    json_files.ocrbench: write_ocrbench,
    tsv.read: table(**LETTERS),
    tsv.mmbench: table(**LETTERS),
    tsv.pope: table(answer="Yes", category="random,popular"),
    tsv.ocr_bench: table(answer="['red', 'Red']", category="Regular Text Recognition"),
    tsv.hallusion_bench: table(answer="Yes", category="VD", **{"l2-category": "c", "index": "VD_c_1_0_2"}),
    tsv.touchstone: table(**TOUCHSTONE),
}
HUB_OPTIONS = {"question": "what?", "options": ["None", "NA"], "answer": "0", "question_id": "1", "data_type": "image"}
HUB_ROWS = {
    hugging_face.vqa: {"question_id": "7", "question": "what?", "answers": ["red"] * 10},
    hugging_face.chartqa: {"question": "what?", "answer": ["red"]},
    hugging_face.gqa: {"id": "7", "imageId": "42", "question": "what?", "answer": "red"},
    hugging_face.choice: HUB_OPTIONS | {"question_type_id": 1},
    hugging_face.mmbench: {"index": 3, "question": "what?", "hint": "nan", "A": "None", "B": "NA", "answer": "A"},
    hugging_face.grounding: {"question_id": "7", "bbox": [1.0, 2.0, 3.0, 4.0], "answer": ["cat", "the cat"]},
    hugging_face.captions: {"image_id": "42", "annotations_captions": ["a cat"]},
    hugging_face.mme: {"question_id": "existence/1.png", "question": "Is it?", "answer": "Yes", "category": "count"},
    hugging_face.pope: {"id": "1", "question_id": "1", "question": "Is it?", "answer": "yes", "category": "random"},
    hugging_face.ocr_bench: {"question": "what?", "answer": ["red"], "question_type": "x", "dataset": "IIIT5K"},
    hugging_face.hallusion_bench: {"category": "VD", "subcategory": "c", "set_id": "0", "figure_id": "1"}
    | {"question_id": "0", "question": "Is it?", "gt_answer": "1"},
}


def write_hub(benchmark, layout, root):
    """Write a data set as it lies on the hub: one Parquet file in the folder of its config."""
    options = {"split": "test", **(layout.reader.keywords if isinstance(layout.reader, functools.partial) else {})}
    reader = layout.reader.func if isinstance(layout.reader, functools.partial) else layout.reader
    row = dict(HUB_ROWS[reader if reader in HUB_ROWS else hugging_face.choice])
    row |= {"type": options["kind"]} if "kind" in options else {}
    row |= {"data_type": "video", "question_type_id": 10} if benchmark.name == "seed_bench_video" else {}
    image = pa.array([{"bytes": PNG.getvalue(), "path": "1.png"}])
    parts = {(options.get("config") or "data", "testdev" if reader is hugging_face.gqa else options["split"]): row}
    if reader is hugging_face.gqa:
        parts = {
            ("testdev_balanced_instructions", "testdev"): row,
            ("testdev_balanced_images", "testdev"): {"id": "42"},
        }
    for (config, split), cells in parts.items():
        columns = {name: pa.array([cell]) for name, cell in cells.items()}
        path = root / layout.files["records"].path / config / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(pa.table(columns | ({} if "imageId" in cells else {"image": image})), path)


SPLITS = {"chartqa_test_human": "test_human", "chartqa_test_augmented": "test_augmented", "mmmu_val": "validation"}


def write_png(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PNG.getvalue())


def write_layout(benchmark, layout, root):
    """Write the files of a layout of a benchmark."""
    reader = layout.reader.func if isinstance(layout.reader, functools.partial) else layout.reader
    files = {role: root / file.path for role, file in layout.files.items() if role != SHOTS}
    if layout.name == HUB_SET:
        write_hub(benchmark, layout, root)
        return
    if layout.name != "clips":
        files = {role: path for role, path in files.items() if not role.startswith("clips")}
    for role in files:
        if role == "images":
            files[role].mkdir(parents=True, exist_ok=True)
    if benchmark.name in SPLITS and reader not in WRITERS:
        table(**LETTERS, split=SPLITS[benchmark.name])(files)
    elif layout.name == TABLE and benchmark.template == "mme":
        table(answer="Yes", category="count")(files)
    elif reader is tsv.read and benchmark.template == "vqa":
        table(answer=str(["red"] * 10))(files)
    elif layout.name == TABLE and reader not in WRITERS:
        table(**LETTERS)(files)
    else:
        WRITERS[reader](files)
    write_png(root / IMAGE)
