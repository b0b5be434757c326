"""The example set: small, complete, documented, and training data without a complaint."""

import json
import logging
import re
from pathlib import Path

from PIL import Image

from qwen_vl.data.boxes import numbers, segments
from qwen_vl.data.chatml import IGNORE_INDEX, encode
from qwen_vl.data.conversations import read

FOLDER = Path(__file__).parents[2] / "data" / "examples"
MAX_BYTES = 40_000


def test_every_conversation_is_read_and_encoded(tokenizer, caplog):
    """No warning either; all kinds of samples that data/README.md describes are there, in both languages."""
    with caplog.at_level(logging.WARNING):
        conversations = read(FOLDER / "conversations.json")
    assert not caplog.records and len(conversations) >= 12
    num_pictures, kinds, text = [], set(), ""
    for record in conversations:
        sample = encode(record, tokenizer, max_length=2048)
        assert sum(label != IGNORE_INDEX for label in sample["labels"]) > 20
        num_pictures.append(len(sample["images"]))
        kinds |= {piece.kind for pieces in segments(record["conversations"]) for piece in pieces}
        text += "".join(turn["value"] for turn in record["conversations"])
    assert set(num_pictures) >= {0, 1, 2, 3} and kinds == {"text", "img", "ref", "box", "quad"}
    assert len(re.findall("[\u4e00-\u9fff]", text)) > 200 and max(len(r["conversations"]) for r in conversations) >= 6


def test_every_box_has_a_size_and_belongs_to_a_picture():
    for record in json.loads((FOLDER / "conversations.json").read_text("utf-8")):
        for piece in (piece for pieces in segments(record["conversations"]) for piece in pieces):
            if piece.kind == "box":
                x1, y1, x2, y2 = numbers(piece.text)
                assert x2 - x1 >= 10 and y2 - y1 >= 10, record["id"]
                assert piece.picture is not None or record["id"] == "what-is-a-box"


def test_pictures_are_small_used_and_have_their_source_on_record():
    text = (FOLDER / "conversations.json").read_text("utf-8")
    table = (FOLDER / "README.md").read_text("utf-8")
    pictures = sorted(FOLDER.glob("*.jpg"))
    assert len(pictures) == 12
    for path in pictures:
        assert path.stat().st_size <= MAX_BYTES and f"<img>{path.name}</img>" in text
        with Image.open(path) as picture:
            assert picture.format == "JPEG" and min(picture.size) >= 150 and not picture.getexif()
            assert f"| `{path.name}` | {picture.width} x {picture.height} |" in table
