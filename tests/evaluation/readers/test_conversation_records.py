"""Conversation files of the project as records of an evaluation."""

import base64
import json
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from qwen_vl.data.conversations import read as read_conversations
from qwen_vl.evaluation.generation import split
from qwen_vl.evaluation.readers import conversations

EXAMPLES = Path(__file__).resolve().parents[3] / "data" / "examples" / "conversations.json"


def turns(*texts):
    roles = ("user", "assistant")
    return [{"from": roles[number % 2], "value": text} for number, text in enumerate(texts)]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


def write(path, records):
    path.write_text(json.dumps(records), encoding="utf-8")
    return {"records": path}


def test_the_examples_become_records():
    wanted = read_conversations(EXAMPLES)
    records = conversations.read({"records": EXAMPLES})
    assert len(records) == len(wanted) > 0
    for record, conversation in zip(records, wanted, strict=True):
        history, question, answer = split(conversation)
        assert (list(record.history), record.question, record.answers) == (history, question, (answer,))
        assert record.id == str(conversation["id"])
        texts = [*(asked for asked, _ in history), question]
        assert len(record.images) == sum(text.count("<img>") for text in texts)
    assert all(image.open().size for record in records for image in record.images)


def test_turns_images_references_and_fields(folder):
    content = (folder / "a.png").read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    records = [
        {
            "id": 7,
            "system": "Be brief.",
            "conversations": turns(
                "Picture 1: <img>a.png</img>\nWhat?", "A tag.", f"<img>{uri}</img><img>a.png</img> And?", "x"
            ),
            "metric": "text",
            "category": ["one", "two"],
            "references": ["NA", "y"],
        },
        {"id": "7", "conversations": turns("Hi", "Bye"), "category": "one"},
        {"conversations": [{"from": "assistant", "value": "Welcome"}, *turns("Q", "None")]},
    ]
    files = write(folder / "mine.json", records)
    first, second, third = conversations.read(files)
    assert first.history == (("Picture 1: <img>a.png</img>\nWhat?", "A tag."),)
    assert [image.read() for image in first.images] == [content] * 3 and first.images[0] is first.images[2]
    assert first.question == f"<img>{first.images[1].name}</img><img>a.png</img> And?" and len(first.question) < 80
    assert first.system == "Be brief." and first.answers == ("NA", "y")
    assert first.fields == {"metric": "text", "category": ["one", "two"]}
    assert (first.id, second.id, third.id) == ("7", "7#2", "mine.json[2]")
    assert second.fields == {"category": "one"} and second.images == () and second.system is None
    assert third.answers == ("None",) and third.history == ()

    lines = folder / "mine.jsonl"
    lines.write_text("\n".join(json.dumps(record) for record in records[:2]), encoding="utf-8")
    assert [record.answers for record in conversations.read({"records": lines})] == [first.answers, second.answers]
    table = folder / "mine.parquet"
    parquet.write_table(
        pa.Table.from_pylist([{**records[1], "metric": None}, {"conversations": turns("Q", "A"), "metric": "text"}]),
        table,
    )
    assert [record.fields for record in conversations.read({"records": table})] == [
        {"category": "one"},
        {"metric": "text"},
    ]


def test_an_image_folder_and_the_network(folder, tmp_path_factory, monkeypatch):
    records = [{"conversations": turns("<img>b.png</img> <img>https://x.test/i.png</img> Q", "A")}]
    files = write(tmp_path_factory.mktemp("elsewhere") / "mine.json", records)
    with pytest.raises(ValueError, match=r"b\.png"):
        conversations.read(files)
    (record,) = conversations.read({**files, "images": folder})
    assert record.images[0].open().size == (8, 8) and record.images[1].name == "https://x.test/i.png"
    monkeypatch.setattr(conversations, "download", lambda address: (address.encode(), "image/png"))
    assert record.images[1].read() == b"https://x.test/i.png"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "x", "conversations": turns("Q", "A", "Q")}, "mine.json: x: ends without an answer"),
        (
            {"id": "x", "conversations": turns("Q", "A"), "references": []},
            r"mine.json: x\.references: \[\]; use a string",
        ),
        ({"id": "x", "conversations": turns("Q", "A"), "references": [1]}, r"x\.references: \[1\]; use a string"),
        ({"id": "x", "conversations": turns("Q", "A"), "metric": ["iou"]}, r"x\.metric: \['iou'\]; use a string"),
        ({"id": "x", "conversations": turns("<img>data:image/png;base64,abc</img>", "A")}, "x: image data:.*base64"),
    ],
)
def test_a_record_that_cannot_be_evaluated_is_named(folder, record, message):
    with pytest.raises(ValueError, match=message):
        conversations.read(write(folder / "mine.json", [record]))
