"""Benchmarks with a JSON format of their own: POPE, HallusionBench, OCRBench."""

from collections.abc import Mapping
from pathlib import Path

from qwen_vl.evaluation.records import Record

from .reading import Images, Row, collect, json_lines, json_rows

POPE_SPLITS = ("random", "popular", "adversarial")
GROUPS = ("category", "subcategory", "set_id", "figure_id", "question_id")  # of HallusionBench
NO_FIGURE = ("0", 0)  # `visual_input` of a question without an image


def pope(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of the three splits {"question_id", "image", "text", "label"}, in the order of POPE_SPLITS.

    Fields: `split`, `question_id`. Images are COCO's of val2014 (role "images"). Ids are SPLIT/NUMBER.
    """
    records: list[Record] = []
    for split in POPE_SPLITS:
        path = files[split]
        images = Images(files["images"], files["root"], path.parent)

        def make(row: Row, split: str = split, images: Images = images) -> Record:
            name, label = row.id("question_id"), row.text("label")
            if label not in ("yes", "no"):
                raise row.error(f"label: {label!r}; use yes or no")
            image = images.find(row, row.text("image"))
            fields = {"split": split, "question_id": name}
            return Record(f"{split}/{name}", row.text("text"), (image,), (label,), fields=fields)

        records += collect(json_lines(path), make)
    return records


def hallusion_bench(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions that have an image, of a JSON list {"category", .., "filename", "gt_answer"}.

    Fields: `category`, `subcategory`, `set_id`, `figure_id`, `question_id`. The answer is yes or no. Paths of images
    are relative to the folder that has the file, or to the one above it.
    """
    path = files["records"]
    images = Images(path.parent, path.parent.parent, files["root"])

    def make(row: Row) -> Record | None:
        if row.values.get("visual_input") in NO_FIGURE or row.values.get("filename") in (None, ""):
            return None
        right = str(row.values.get("gt_answer"))
        if right not in ("0", "1"):
            raise row.error(f"gt_answer: {row.values.get('gt_answer')!r}; use 0 or 1")
        fields = {key: row.id(key) for key in GROUPS}
        image = images.find(row, row.text("filename"))
        answer = "yes" if right == "1" else "no"
        name = "/".join(map(str, fields.values()))
        return Record(name, row.text("question"), (image,), (answer,), fields=fields)

    return collect(json_rows(path), make)


def ocrbench(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of a JSON list {"dataset_name", "type", "image_path", "question", "answers"}.

    Fields: `type`, `dataset`. Images are below OCRBench_Images/ (role "images"). Ids count from 0.
    """
    path = files["records"]
    images = Images(files["images"], path.parent, files["root"])
    rows = json_rows(path)
    numbers = {row.place: number for number, row in enumerate(rows)}

    def make(row: Row) -> Record:
        answers = row.texts("answers")
        if not answers:
            raise row.error("answers: is missing; use a string or a list of strings")
        image = images.find(row, row.text("image_path"))
        fields = {"type": row.text("type"), "dataset": row.text("dataset_name", "")}
        return Record(str(numbers[row.place]), row.text("question"), (image,), answers, fields=fields)

    return collect(rows, make)
