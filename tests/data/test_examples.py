"""The example set: small, complete, documented, and without a problem or a warning."""

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
    """Read without a warning. All kinds of samples of docs/data.md are there, in both languages."""
    with caplog.at_level(logging.WARNING):
        conversations = read(FOLDER / "conversations.json")
    assert not caplog.records and len(conversations) >= 12
    num_images, kinds, text = [], set(), ""
    for record in conversations:
        sample = encode(record, tokenizer, max_length=2048)
        assert sum(label != IGNORE_INDEX for label in sample["labels"]) > 20
        num_images.append(len(sample["images"]))
        kinds |= {piece.kind for pieces in segments(record["conversations"]) for piece in pieces}
        text += "".join(turn["value"] for turn in record["conversations"])
    assert set(num_images) >= {0, 1, 2, 3} and kinds == {"text", "img", "ref", "box", "quad"}
    assert len(re.findall("[\u4e00-\u9fff]", text)) > 200 and max(len(r["conversations"]) for r in conversations) >= 6


def test_every_box_has_a_size_and_belongs_to_an_image():
    for record in json.loads((FOLDER / "conversations.json").read_text("utf-8")):
        for piece in (piece for pieces in segments(record["conversations"]) for piece in pieces):
            if piece.kind == "box":
                x1, y1, x2, y2 = numbers(piece.text)
                assert x2 - x1 >= 10 and y2 - y1 >= 10, record["id"]
                assert piece.image is not None or record["id"] == "what-is-a-box"


def test_images_are_small_used_and_have_their_source_on_record():
    text = (FOLDER / "conversations.json").read_text("utf-8")
    table = (FOLDER / "README.md").read_text("utf-8")
    images = sorted(FOLDER.glob("*.jpg"))
    assert len(images) == 12
    for path in images:
        assert path.stat().st_size <= MAX_BYTES and f"<img>{path.name}</img>" in text
        with Image.open(path) as image:
            assert image.format == "JPEG" and min(image.size) >= 150 and not image.getexif()
            assert f"| `{path.name}` | {image.width} x {image.height} |" in table
