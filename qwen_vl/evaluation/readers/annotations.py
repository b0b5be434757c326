"""JSON files of annotations: VQA with ten answers each, DocVQA and InfographicVQA, captions in the form of COCO."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_vl.evaluation.records import Record

from . import json_lines
from .problems import Problems
from .reading import Images, Row, by_id, collect, few, json_file, json_rows

INFOGRAPHIC_LISTS = ("answer_type", "evidence", "operation/reasoning")


def vqa(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of a converted file (role "records") with all answers of the annotations.

    Fields: `question_id`, `question_type`, `answer_type`. A file of questions (role "questions"), if it is there, must
    have exactly the ids of the annotations; the converted file may have fewer.
    Without a converted file, the questions are those of the file of questions, and images are COCO's.
    """
    notes = by_id(json_rows(files["annotations"], "annotations"), "question_id")
    questions = by_id(json_rows(files["questions"], "questions"), "question_id") if "questions" in files else None
    if questions is not None:
        _check_same(questions, notes, files)
    records = json_lines.vqa(files) if "records" in files else _of_coco(files, questions or {})
    unknown = [record.fields["question_id"] for record in records if record.fields["question_id"] not in notes]
    if unknown:
        raise ValueError(
            f"{files.get('records')}: question_id {few(unknown)} is not in {files['annotations']}; use files of the "
            "same split"
        )
    problems, complete = Problems(), []
    for record in records:
        try:
            complete.append(_with_note(record, notes[record.fields["question_id"]]))
        except ValueError as error:
            problems.add(error)
    problems.raise_if_any()
    return complete


def _check_same(questions: Mapping[int | str, Row], notes: Mapping[int | str, Row], files: Mapping[str, Path]) -> None:
    """Raise ValueError unless questions and annotations have the same ids, and the same image for each."""
    problems = Problems()
    for one, other, names in (
        ("questions", "annotations", (questions, notes)),
        ("annotations", "questions", (notes, questions)),
    ):
        missing = [name for name in names[0] if name not in names[1]]
        if missing:
            problems.add(
                f"{files[one]}: question_id {few(missing)} is not in {files[other]}; use files of the same split"
            )
    moved = [
        name
        for name, row in questions.items()
        if name in notes and row.values.get("image_id") != notes[name].values.get("image_id")
    ]
    if moved:
        problems.add(
            f"{files['questions']}: question_id {few(moved)} has another image_id in {files['annotations']}; "
            "use files of the same version"
        )
    problems.raise_if_any()


def _with_note(record: Record, note: Row) -> Record:
    """Return a record with the answers and types of its annotation; raise ValueError if it has no answers."""
    answers = note.values.get("answers")
    if not isinstance(answers, list) or not answers:
        raise note.error(f"answers: {answers!r:.80}; use the list of all answers")
    texts = [Row(note.place, answer).text("answer") if isinstance(answer, dict) else answer for answer in answers]
    if not all(isinstance(text, str) for text in texts):
        raise note.error(f"answers: {answers!r:.80}; use strings, or objects with 'answer'")
    kinds = {key: note.text(key, "") for key in ("question_type", "answer_type")}
    return replace(record, answers=tuple(texts), fields={**record.fields, **kinds})


def _of_coco(files: Mapping[str, Path], questions: Mapping[int | str, Row]) -> list[Record]:
    """Return the questions of the official file, with the names that COCO gives its images."""
    content = json_file(files["questions"])
    subset, images = str(content.get("data_subtype", "")), Images(files["root"], files["questions"].parent)

    def make(row: Row) -> Record:
        name, number = row.id("question_id"), row.number("image_id")
        image = images.find(row, f"data/coco/{subset}/COCO_{subset}_{number:012d}.jpg")
        return Record(str(name), row.text("question"), (image,), fields={"question_id": name})

    return collect(questions.values(), make)


def docvqa(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of an official file of DocVQA or InfographicVQA, with all accepted answers.

    With a converted file (role "records") questions and images are those of that file, which may have fewer. Fields:
    `question_id` (questionId), and InfographicVQA's lists `answer_type`, `evidence`, `operation/reasoning`.
    """
    rows = json_rows(files["annotations"], "data")
    folder = files["annotations"].parent
    images = Images(*([files["images"]] if "images" in files else []), folder, files["root"], folder.parent)

    def fields_of(row: Row) -> dict[str, Any]:
        lists = {key: list(row.texts(key)) for key in INFOGRAPHIC_LISTS if key in row.values}
        return {"question_id": row.id("questionId"), **lists}

    def make(row: Row) -> Record:
        reference = row.text("image" if "image" in row.values else "image_local_name")
        image, name = images.find(row, reference), row.id("questionId")
        return Record(str(name), row.text("question"), (image,), row.texts("answers"), fields=fields_of(row))

    if "records" not in files:
        return collect(rows, make)
    notes = by_id(rows, "questionId")
    records = json_lines.vqa(files)
    unknown = [record.id for record in records if record.fields["question_id"] not in notes]
    if unknown:
        raise ValueError(
            f"{files['records']}: question_id {few(unknown)} is no questionId of {files['annotations']}; use files of "
            "the same split"
        )
    found = [notes[record.fields["question_id"]] for record in records]
    return [
        replace(record, answers=row.texts("answers"), fields=fields_of(row))
        for record, row in zip(records, found, strict=True)
    ]


def captions(files: Mapping[str, Path]) -> list[Record]:
    """Return the images of a file in COCO's form, each with all of its captions as accepted answers.

    Fields: `image_id`; `domain` ("in-domain", "near-domain", "out-domain") where the file has it, or NoCaps' original
    file (role "domains") does. Raise ValueError for a caption without its image, and for an image without captions.
    """
    path = files["records"]
    images = Images(*([files["images"]] if "images" in files else []), files["root"], path.parent)
    domains = _domains(files["domains"]) if "domains" in files else {}
    references: dict[int | str, list[str]] = {}
    problems = Problems()
    for row in json_rows(path, "annotations"):
        try:
            references.setdefault(row.id("image_id"), []).append(row.text("caption"))
        except ValueError as error:
            problems.add(error)
    problems.raise_if_any()
    rows = json_rows(path, "images")
    without_image = set(references) - {row.values.get("id") for row in rows}
    if without_image:
        raise ValueError(
            f"{path}: captions of image_id {few(sorted(without_image, key=str))}, which is not among the images; "
            "get the complete file"
        )

    def make(row: Row) -> Record:
        name = row.id("id")
        reference = row.text("image" if "image" in row.values else "file_name")
        if name not in references:
            raise row.error(f"image {name!r} has no caption; get the complete file")
        domain = row.text("domain", "") or domains.get(name, "") or domains.get(Path(reference).name, "")
        fields = {"image_id": name, **({"domain": domain} if domain else {})}
        return Record(str(name), "", (images.find(row, reference),), tuple(references[name]), fields=fields)

    return collect(rows, make)


def _domains(path: Path) -> dict[int | str, str]:
    """Return the domain of each image of NoCaps' original file, by its id and by the name of its file."""
    found: dict[int | str, str] = {}
    for row in json_rows(path, "images"):
        domain = row.text("domain")
        found[row.id("id")] = domain
        found[row.text("file_name", "")] = domain
    return found


def caption_shots(files: Mapping[str, Path]) -> list[Record]:
    """Return the captions of a training file in COCO's form (role "shots"), a solved example each.

    Its annotations have `image`, or it is looked up by `image_id`.
    """
    path = files["shots"]
    images = Images(files["root"], path.parent)
    rows = json_rows(path, "annotations")
    by_number: dict[int | str, Row] = {}
    if any("image" not in row.values for row in rows):
        by_number = by_id(json_rows(path, "images"), "id")
    count = iter(range(len(rows)))

    def make(row: Row) -> Record:
        number = next(count)
        named = row if "image" in row.values else by_number.get(row.id("image_id"), row)
        reference = named.text("image")
        return Record(str(number), "", (images.find(row, reference),), (row.text("caption"),))

    return collect(rows, make)


def vqa_shots(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of a converted training file (role "shots"), each with its most frequent answer."""
    return json_lines.vqa({**files, "records": files["shots"]})
