"""Converted JSON Lines: what they give, and what is said about damaged ones."""

import json

import pytest
from PIL import Image

from qwen_vl.evaluation.readers import json_lines


@pytest.fixture
def root(tmp_path):
    """Return the folder that holds data/, with one image."""
    (tmp_path / "data" / "set" / "5").mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(tmp_path / "data" / "set" / "5" / "a.png")
    return tmp_path


IMAGE = "data/set/5/a.png"


def written(root, rows, name="x.jsonl"):
    path = root / "data" / "set" / name
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return {"root": root, "records": path}


def question(**values):
    return {"image": IMAGE, "question": "brand?", "question_id": 3, "answer": "dakota"} | values


def test_questions_keep_their_ids_and_all_answers(root):
    rows = [
        question(),
        question(question_id="b", answer=["x", "y"]),
        {key: value for key, value in question(question_id="VizWiz_1.jpg").items() if key != "answer"},
        question(question_id=4, answer=None),
    ]
    records = json_lines.vqa(written(root, rows))
    assert [record.id for record in records] == ["3", "b", "VizWiz_1.jpg", "4"]
    assert [record.answers for record in records] == [("dakota",), ("x", "y"), (), ()]
    assert [record.fields["question_id"] for record in records] == [3, "b", "VizWiz_1.jpg", 4]
    assert records[0].images[0].name == IMAGE and records[0].images[0].open().size == (40, 20)
    assert len({record.cluster for record in records}) == 1


def test_another_encoding_is_named_and_a_mark_at_the_start_is_not_text(root):
    files = written(root, [question(question="où?")])
    text = files["records"].read_text()
    files["records"].write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert json_lines.vqa(files)[0].question == "où?"
    files["records"].write_bytes(text.encode() + text.replace("\\u00f9", "ù").encode("latin-1"))
    with pytest.raises(ValueError, match=r"x.jsonl:2: is not UTF-8 text"):
        json_lines.vqa(files)


def test_data_dir_may_be_the_data_folder_itself(root):
    files = written(root, [question()]) | {"root": root / "data"}
    assert json_lines.vqa(files)[0].images[0].open().size == (40, 20)


@pytest.mark.parametrize(
    "rows, messages",
    [
        ([question(), question()], ["x.jsonl:2: id '3' was used at", "x.jsonl:1; use each id once"]),
        ([question(), '{"image": "data/se'], ["x.jsonl:2: not complete JSON"]),
        (["[1]\n"], ["x.jsonl:1: [1]; use one JSON object a line"]),
        ([question(answer=3)], ["x.jsonl:1: answer: 3; use a string or a list of strings"]),
        ([question(answer=["x", 3])], ["answer: ['x', 3]"]),
        ([question(question=["x"])], ["question: ['x']; use a string"]),
        ([question(question_id=None)], ["question_id: None; use an integer or a string"]),
        ([question(question_id=True)], ["question_id: True"]),
        ([{"image": IMAGE, "question_id": 1}], ["question: is missing; use a string"]),
        (
            [question(image="data/set/b.png"), question(question_id=4, image="data/c.png")],
            ["x.jsonl:1: image 'data/set/b.png': not found as", "x.jsonl:2: image 'data/c.png'", "unpack the images"],
        ),
    ],
)
def test_all_that_is_wrong_is_named(root, rows, messages):
    with pytest.raises(ValueError) as error:
        json_lines.vqa(written(root, rows))
    for message in messages:
        assert message in str(error.value)


def test_expressions_have_boxes(root):
    row = {"image": IMAGE, "sent": "the cat", "bbox": [1, 2.5, 3, 4], "width": 40, "height": 20}
    records = json_lines.grounding(written(root, [row, row]))
    assert [record.id for record in records] == ["0", "1"]
    assert records[0].question == "the cat"
    assert records[0].fields == {"bbox": [1, 2.5, 3, 4], "width": 40, "height": 20}
    for values, message in (
        ({"bbox": [1, 2]}, "use a list of 4 numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, r"bbox: \[1, 2, 3, nan\]"),
        ({"bbox": "1234"}, "bbox: '1234'"),
        ({"width": "40"}, "width: '40'; use a number"),
        ({"width": 0}, "use the size of the image"),
    ):
        with pytest.raises(ValueError, match=message):
            json_lines.grounding(written(root, [row | values]))


def test_grit_in_both_forms(root):
    row = {"example_id": "r-1", "image": IMAGE, "sent": "the cat", "bbox": [1, 2, 3, 4], "width": 50, "height": 60}
    (record,) = json_lines.grit(written(root, [row]))
    assert record.id == "r-1" and record.fields["bbox"] == [1, 2, 3, 4] and record.fields["width"] == 50
    rows = [{"example_id": "r-1", "image_id": "set/5/a.png", "task_query": "the cat"}]
    (record,) = json_lines.grit(written(root, [json.dumps(rows)], "refexp.json") | {"images": root / "data"})
    assert record.question == "the cat" and "bbox" not in record.fields
    assert (record.fields["width"], record.fields["height"]) == (40, 20)


def test_science_questions_join_their_problems(root):
    row = {"image": IMAGE, "hint": None, "question": "which?", "choices": ["None", "NA"], "answer": 1}
    files = written(root, [row, row | {"hint": "a hint"}])
    records = json_lines.science_qa(files)
    assert records[0].options == ("None", "NA") and records[0].answers == ("B",)
    assert [record.hint for record in records] == ["", "a hint"]
    problems = root / "problems.json"
    problems.write_text(json.dumps({"5": {"subject": "natural science", "topic": "physics", "grade": "grade4"}}))
    records = json_lines.science_qa(files | {"problems": problems})
    assert records[0].fields == {"subject": "natural science", "topic": "physics", "grade": "grade4"}
    problems.write_text(json.dumps({"6": {}}))
    with pytest.raises(ValueError, match="its folder is no problem of"):
        json_lines.science_qa(files | {"problems": problems})
    for values, message in (({"answer": 2}, "number of one of 2 choices"), ({"choices": "ab"}, "choices: 'ab'")):
        with pytest.raises(ValueError, match=message):
            json_lines.science_qa(written(root, [row | values]))


def test_rotations_of_mmbench(root):
    row = {"index": 1_000_003, "image": IMAGE, "hint": "", "question": "q", "choices": ["a", "b"], "category": "ocr"}
    (record,) = json_lines.mmbench(written(root, [row]))
    assert record.id == "1000003" and record.answers == () and record.fields["index"] == 1_000_003
    assert record.fields["category"] == "ocr"


def test_prompts_of_seed_bench_are_taken_apart(root):
    prompt = f"<img>{IMAGE}</img>\nQuestion: Is A. it\nOptions: A. a\nB. b B. c\nC. c\nD. None\nAnswer:"
    video = f"<img>{IMAGE}</img>\n" * 3 + prompt
    files = written(root, [{"question_id": "1", "prompt": prompt, "answer": "D"}])
    more = written(root, [{"question_id": "v0", "prompt": video, "answer": "A"}], "v.jsonl")["records"]
    records = json_lines.seed_bench(files | {"video_records": more})
    assert records[0].question == "Is A. it" and records[0].options == ("a", "b B. c", "c", "None")
    assert records[0].answers == ("D",)
    assert [len(record.images) for record in records] == [1, 4]
    assert [record.fields["data_type"] for record in records] == ["image", "video"]
    original = root / "SEED-Bench.json"
    kinds = [{"question_id": "1", "question_type_id": 5}, {"question_id": "v0", "question_type_id": 10}]
    original.write_text(json.dumps({"questions": kinds}))
    records = json_lines.seed_bench(files | {"video_records": more, "questions": original})
    assert [record.fields["question_type_id"] for record in records] == [5, 10]
    with pytest.raises(ValueError, match="has 1 ids of"):
        json_lines.seed_bench(files | {"video_records": files["records"]})
    with pytest.raises(ValueError, match=r"use <img>\.\.</img>, Question:"):
        json_lines.seed_bench(written(root, [{"question_id": "1", "prompt": "what?", "answer": "A"}]))
