"""Submission files: each is read back as a server would, and has exactly the answers that were given."""

import csv
import json
import zipfile
from dataclasses import replace

import pytest
from openpyxl import load_workbook

from qwen_vl.evaluation import submissions
from qwen_vl.evaluation.metrics.grounding import GRIT
from qwen_vl.evaluation.metrics.result import Pair
from qwen_vl.evaluation.records import Answer, ImageSource, Record

TEXTS = ["a red bus", "", 'two\nlines, "quoted"\tand 中文', "NA"]


def pair(id, text=None, choice=None, images=(), **record):
    sources = tuple(ImageSource.from_bytes(name, b"") for name in images)
    answer = Answer(id, "key", text=text, choice=choice, losses=None if choice is None else (1.0,) * 4)
    return Pair(Record(id, record.pop("question", "q"), sources, **record), answer)


@pytest.mark.parametrize(
    ("write", "name", "id_key", "text_key", "fields"),
    [
        (submissions.vqav2, "vqav2.json", "question_id", "answer", [{"question_id": n} for n in (9, 10, 11, 12)]),
        (submissions.textvqa, "textvqa.json", "question_id", "answer", [{}] * 4),
        (submissions.docvqa, "docvqa.json", "questionId", "answer", [{"questionId": str(n)} for n in range(4)]),
        (submissions.docvqa, "docvqa.json", "questionId", "answer", [{"question_id": n} for n in range(4)]),
        (submissions.captions, "captions.json", "image_id", "caption", [{"image_id": n} for n in range(4)]),
    ],
)
def test_lists_of_texts_with_whole_numbers_as_ids(tmp_path, write, name, id_key, text_key, fields):
    pairs = [
        pair(str(number), text, fields=field) for number, (text, field) in enumerate(zip(TEXTS, fields, strict=True))
    ]
    (path,) = write(tmp_path / "new", pairs)
    assert path == tmp_path / "new" / name
    rows = json.loads(path.read_text(encoding="utf-8"))
    wanted = [int(next(iter(field.values()), number)) for number, field in enumerate(fields)]
    assert rows == [{id_key: number, text_key: text} for number, text in zip(wanted, TEXTS, strict=True)]
    with pytest.raises(ValueError, match=r"record 'x': .* is no whole number"):
        write(tmp_path, [pair("x", "text")])
    with pytest.raises(ValueError, match=r"record '1': the answer has no text"):
        write(tmp_path, [pair("1", choice=0)])
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_vqav2_has_the_questions_outside_of_test_dev(tmp_path):
    (path,) = submissions.vqav2(tmp_path, [pair("7", "yes")], other_ids=[7, 8, "9"])
    wanted = [{"question_id": number, "answer": text} for number, text in ((7, "yes"), (8, ""), (9, ""))]
    assert json.loads(path.read_text()) == wanted
    (path,) = submissions.vqav2(tmp_path, [pair("7", "yes", fields={"other_question_ids": (7, 8, 9)})])
    assert json.loads(path.read_text()) == wanted


def test_vizwiz_names_images(tmp_path):
    pairs = [
        pair("1", "a", images=["data/vizwiz/test/VizWiz_test_00000001.jpg"], fields={"question_id": 1}),
        pair("VizWiz_test_00000000.jpg", "b", images=["some.jpg"]),
    ]
    (path,) = submissions.vizwiz(tmp_path, pairs)
    assert json.loads(path.read_text()) == [
        {"image": "VizWiz_test_00000001.jpg", "answer": "a"},
        {"image": "VizWiz_test_00000000.jpg", "answer": "b"},
    ]


def test_mmbench_is_a_spreadsheet_with_a_row_for_every_rotation(tmp_path):
    options = ("None", "=1+1", "#N/A", "x\x07")
    cells = dict(zip("ABCD", options, strict=True))
    pairs = [
        pair(index, choice=place, options=options, fields={"index": index, "hint": "", **cells, "answer": "A"})
        for index, place in (("7", 0), ("1000007", 3))
    ]
    (path,) = submissions.mmbench(tmp_path, pairs)
    header, *rows = load_workbook(path).active.iter_rows(values_only=True)
    assert header == ("index", "hint", "A", "B", "C", "D", "answer", "prediction")
    assert rows == [
        (7, None, "None", "=1+1", "#N/A", "x", "A", "A"),
        (1000007, None, "None", "=1+1", "#N/A", "x", "A", "D"),
    ]
    (path,) = submissions.mmbench(tmp_path, [pair("7", choice=1, fields={"index": 7, "row": {"index": 7, "A": [1]}})])
    assert list(load_workbook(path).active.values) == [("index", "A", "prediction"), (7, "[1]", "B")]


def test_seed_bench_has_letters(tmp_path):
    pairs = [pair("101", choice=3, fields={"question_id": 101}), pair("v1", choice=0, fields={"question_id": "v1"})]
    pairs += [pair(id, text, options=("x", "y", "z", "w")) for id, text in (("5", "The answer is B."), ("6", "none"))]
    (path,) = submissions.seed_bench(tmp_path, pairs)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    letters = ["D", "A", "B", ""]
    wanted = [
        {"question_id": id, "prediction": said} for id, said in zip(["101", "v1", "5", "6"], letters, strict=True)
    ]
    assert rows == wanted


def test_mme_has_a_file_a_subtask_with_the_questions_of_an_image_together(tmp_path):
    subtasks = [
        "existence",
        "count",
        "position",
        "color",
        "OCR",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
    ]
    subtasks += ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]
    pairs = [
        pair(
            f"{name}-{image}-{said}", said, images=[f"MME/{name}/{image}"], answers=("yes",), fields={"category": name}
        )
        for name in subtasks
        for said in ("Yes", "No, it\nis\tnot.\r\n")
        for image in ("0.jpg", "1.jpg")
    ]
    paths = submissions.mme(tmp_path, pairs)
    assert sorted(path.name for path in (tmp_path / "mme").iterdir()) == sorted(f"{name}.txt" for name in subtasks)
    for path in paths:
        rows = [line.split("\t") for line in path.read_text().split("\n")[:-1]]
        assert rows == [
            [image, "q", "Yes", said] for image in ("0.jpg", "1.jpg") for said in ("Yes", "No, it is not.  ")
        ]


def test_grit_is_a_zip_with_pixels(tmp_path):
    size = {"width": 640, "height": 480}
    answers = ["(100,200),(300,999)", "no box", "(a,b),(c,d)", "(1,2,3),(4,5)"]
    pairs = [pair(str(n), text, fields={"example_id": f"e{n}", **size}) for n, text in enumerate(answers)]
    (path,) = submissions.grit(tmp_path, pairs, split="test")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["test/params.json", "test/refexp.json"]
        assert json.loads(archive.read("test/params.json")) == {"params_in_millions": 9657}
        rows = json.loads(archive.read("test/refexp.json"))
    assert [row["example_id"] for row in rows] == ["e0", "e1", "e2", "e3"]
    assert [row["confidence"] for row in rows] == [1, 0, 0, 0]
    assert [row["bboxes"] for row in rows] == [[[64, 96, 192, 480]], *[[[0, 0, 0, 0]]] * 3]
    scored = GRIT.score(
        [
            Pair(replace(one.record, fields={**one.record.fields, "bbox": [64, 96, 192, 480]}), one.answer)
            for one in pairs
        ]
    )
    assert scored.samples[0].extra["boxes"]["predicted"] == rows[0]["bboxes"] and scored.samples[0].score == 1
    first = path.read_bytes()
    assert submissions.grit(tmp_path, pairs, split="test")[0].read_bytes() == first


def test_touchstone_keeps_the_columns_and_adds_the_response(tmp_path):
    row = {"index": "0", "question": "q\n2", "human_annotation": 'a "x"', "category": "c,d", "task_name": "t"}
    pairs = [pair(str(number), text, fields={**row, "index": str(number)}) for number, text in enumerate(TEXTS)]
    (path,) = submissions.touchstone(tmp_path, pairs)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert rows == [{**row, "index": str(number), "response": text} for number, text in enumerate(TEXTS)]
