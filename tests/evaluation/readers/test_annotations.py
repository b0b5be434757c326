"""Files of annotations: answers joined to questions, captions to images, and what does not belong together."""

import json

import pytest
from PIL import Image

from qwen_vl.evaluation.readers import annotations

IMAGE = "data/coco/val2014/COCO_val2014_000000000042.jpg"
TEN = ["two"] * 6 + ["2"] * 4


@pytest.fixture
def root(tmp_path):
    path = tmp_path / IMAGE
    path.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(path)
    return tmp_path


def saved(root, name, content):
    path = root / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(json.dumps(content))
    return path


def vqa_files(root, questions=(1, 2), noted=(1, 2), asked=(1, 2), answers=TEN, image_id=42):
    listed = [{"answer_id": n, "answer": text, "answer_confidence": "yes"} for n, text in enumerate(answers, 1)]
    notes = [
        {"question_id": q, "image_id": image_id, "question_type": "how", "answer_type": "number", "answers": listed}
        for q in noted
    ]
    rows = [{"question_id": q, "image_id": 42, "question": f"how many {q}?"} for q in questions]
    lines = [{"question_id": q, "image": IMAGE, "question": f"how many {q}?", "answer": "two"} for q in asked]
    return {
        "root": root,
        "records": saved(root, "x.jsonl", lines),
        "questions": saved(root, "q.json", {"data_subtype": "val2014", "questions": rows}),
        "annotations": saved(root, "a.json", {"annotations": notes}),
    }


def test_vqa_has_all_ten_answers(root):
    files = vqa_files(root, asked=(2,))
    (record,) = annotations.vqa(files)
    assert record.answers == tuple(TEN) and record.question == "how many 2?"
    assert record.fields == {"question_id": 2, "question_type": "how", "answer_type": "number"}
    del files["records"]
    records = annotations.vqa(files)
    assert [record.id for record in records] == ["1", "2"] and records[0].images[0].name == IMAGE


@pytest.mark.parametrize(
    "changes, messages",
    [
        ({"questions": (1, 2, 3, 4)}, ["q.json: question_id 3, 4 is not in", "a.json; use files of the same split"]),
        ({"noted": (1, 2, 7)}, ["a.json: question_id 7 is not in"]),
        ({"asked": (1, 9)}, ["x.jsonl: question_id 9 is not in", "a.json"]),
        ({"noted": (1, 2, 2)}, ["annotations[2]: question_id 2 was used at", "annotations[1]"]),
        ({"answers": []}, ["annotations[0]: answers: []"]),
        ({"answers": [3]}, ["annotations[0]: answer: 3"]),
        ({"image_id": 43}, ["question_id 1, 2 has another image_id"]),
    ],
)
def test_questions_that_do_not_match_their_annotations_are_named(root, changes, messages):
    with pytest.raises(ValueError) as error:
        annotations.vqa(vqa_files(root, **changes))
    for message in messages:
        assert message in str(error.value)


def test_documents_keep_accepted_answers_and_kinds(root):
    row = {"questionId": 65, "question": "who?", "image": IMAGE, "answers": ["ITC", "itc ltd"], "docId": 1}
    infographic = {"image_local_name": IMAGE, "answer_type": ["single span"], "operation/reasoning": ["counting"]}
    other = {key: value for key, value in row.items() if key != "image"} | {"questionId": 66} | infographic
    files = {"root": root, "annotations": saved(root, "val.json", {"dataset_name": "docvqa", "data": [row, other]})}
    records = annotations.docvqa(files)
    assert [record.id for record in records] == ["65", "66"] and records[0].answers == ("ITC", "itc ltd")
    assert records[0].fields == {"question_id": 65}
    assert records[1].fields == {
        "question_id": 66,
        "answer_type": ["single span"],
        "operation/reasoning": ["counting"],
    }
    line = {"image": IMAGE, "question": "who is it?", "question_id": 65, "answer": "ITC"}
    (record,) = annotations.docvqa(files | {"records": saved(root, "val.jsonl", [line])})
    assert record.question == "who is it?" and record.answers == ("ITC", "itc ltd")
    with pytest.raises(ValueError, match="question_id 7 is no questionId of"):
        annotations.docvqa(files | {"records": saved(root, "val.jsonl", [line | {"question_id": 7}])})


def test_captions_of_an_image_are_its_answers(root):
    notes = [{"id": n, "image_id": 5, "caption": text} for n, text in enumerate(["a cat", "one cat"])]
    files = {"root": root}
    files["records"] = saved(root, "c.json", {"images": [{"id": 5, "image": IMAGE}], "annotations": notes})
    (record,) = annotations.captions(files)
    assert (record.id, record.answers, record.fields) == ("5", ("a cat", "one cat"), {"image_id": 5})
    name = IMAGE.rpartition("/")[2]
    original = {"images": [{"id": 99, "file_name": name, "domain": "near-domain"}]}
    (record,) = annotations.captions(files | {"domains": saved(root, "n.json", original)})
    assert record.fields == {"image_id": 5, "domain": "near-domain"}
    files["records"] = saved(root, "c.json", {"images": [{"id": 6, "image": IMAGE}], "annotations": notes})
    with pytest.raises(ValueError, match="captions of image_id 5, which is not among the images"):
        annotations.captions(files)
    two = [{"id": 5, "image": IMAGE}, {"id": 6, "image": IMAGE}]
    files["records"] = saved(root, "c.json", {"images": two, "annotations": notes})
    with pytest.raises(ValueError, match=r"images\[1\]: image 6 has no caption"):
        annotations.captions(files)


def test_captions_of_a_training_file_are_solved_examples(root):
    notes = [{"id": 1, "image_id": 5, "image": IMAGE, "caption": "a cat"}, {"id": 2, "image_id": 5, "caption": "one"}]
    path = saved(root, "train.json", {"images": [{"id": 5, "image": IMAGE}], "annotations": notes})
    records = annotations.caption_shots({"root": root, "shots": path})
    assert [record.answers for record in records] == [("a cat",), ("one",)]
    assert {record.images[0].name for record in records} == {IMAGE}
