"""The boxes of ms-swift: to ours and back, and their errors."""

import json
from pathlib import Path

import pytest
from PIL import Image

from qwen_vl.data.conversations import read
from qwen_vl.data.convert.convert import convert
from qwen_vl.data.validation import DataError

EXAMPLES = Path(__file__).parents[3] / "data" / "examples" / "conversations.json"


def swift(objects, answer="<ref-object><bbox>", question="<image>Find <ref-object>", **more):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": ["a.png"], "objects": objects, **more}


@pytest.fixture
def from_swift(write, tmp_path):
    """Return a function that converts one record of ms-swift and returns its texts."""
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "b.png")

    def run(record, form="swift"):
        convert(write([record], "swift.json"), tmp_path / "out.json", source_format=form)
        return [turn["value"] for turn in read(tmp_path / "out.json")[0]["conversations"]]

    return run


def test_the_boxes_of_swift(from_swift):
    """Convert pixels, shares and thousandths, in the documented form, that of version 2, and as JSON text."""
    pixels = {"ref": ["cats", "a cat"], "bbox": [[20, 10, 100, 50]]}
    expected = ["Picture 1: <img>a.png</img>\nFind <ref>cats</ref>", "<ref>a cat</ref><box>(100,100),(500,500)</box>"]
    assert from_swift(swift(pixels)) == expected == from_swift(swift(pixels | {"bbox_type": "real"}), "sharegpt")
    assert from_swift(swift(pixels | {"bbox": [[0.1, 0.1, 0.5, 0.5]], "bbox_type": "norm1"})) == expected
    two = [[20, 10, 100, 50], [5, 5, 25, 50]]
    _, answer = from_swift(
        swift({"bbox": two, "image_id": [0, 1]}, "<bbox> and <bbox>", "<image><image>?", images=["a.png", "b.png"])
    )
    assert answer == "<box>(100,100),(500,500)</box> and <box>(100,100),(500,999)</box>"
    entries = [{"caption": "cats", "bbox": [100, 200, 300, 1000], "bbox_type": "norm_1000", "image": 0}]
    assert from_swift(swift(json.dumps(entries), "<bbox>")) == [expected[0], "<box>(100,200),(300,999)</box>"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bbox": [[20, 10]]}, r"objects.bbox\[0\]: \[20, 10\]; only boxes of four numbers"),
        ({"bbox": [[20, 10, 300, 50]]}, "exceeds its image of 200 x 100"),
        ({"bbox": [[0, 0, 1.5, 1]], "bbox_type": "norm1"}, "exceeds its image"),
        ({"bbox_type": "other"}, "objects.bbox_type: \"other\"; use 'real'"),
        ({"bbox_type": ["real"]}, r"objects.bbox_type: \[\"real\"\]; use 'real'"),
        ({"bbox": []}, "more <bbox> than the 0 under objects.bbox"),
        ({"ref": ["x"]}, "more <ref-object> than the 1 under objects.ref"),
        ({"bbox": [[0, 0, 1, 1]] * 2}, "2 boxes, 1 <bbox> in the text"),
        ({"image_id": [1]}, "image 1 of 1"),
        ({"ref": ["<x", "y"]}, r"objects.ref\[0\]: \"<x\"; use a text without <"),
    ],
)
def test_what_cannot_be_a_box_of_ours(changes, message, from_swift, tmp_path):
    objects = {"ref": ["cats", "a cat"], "bbox": [[20, 10, 100, 50]]} | changes
    with pytest.raises(DataError, match=message):
        from_swift(swift(objects))
    assert not (tmp_path / "out.json").exists()


def test_swift_there_and_back_changes_nothing(write, tmp_path):
    records = [r for r in json.loads(EXAMPLES.read_text("utf-8")) if "<quad>" not in json.dumps(r)]
    records = [r for r in records if r["id"] != "what-is-a-box"]  # a box without an image
    records[0] |= {"weight": 0.5, "system": "Sei kurz."}
    records[0]["conversations"][1]["loss"] = False
    options = {"check_images": False}
    convert(
        write(records, "ours.json"), tmp_path / "theirs.json", source_format="ours", target_format="swift", **options
    )
    convert(tmp_path / "theirs.json", tmp_path / "again.json", source_format="swift", **options)
    assert json.loads((tmp_path / "again.json").read_text("utf-8")) == records
    theirs = (tmp_path / "theirs.json").read_text("utf-8")
    assert "<bbox>" in theirs and not any(tag in theirs for tag in ("<box>", "<ref>", "<img>"))
