"""Formats with boxes in pixels (COCO, RefCOCO): to ours and back, and their errors."""

import json

import pytest
from helpers.coco import coco
from helpers.records import turns_of

from qwen_vl.data.conversations import read
from qwen_vl.data.convert.convert import convert
from qwen_vl.data.validation import DataError


def test_coco_and_back(to_ours, folder, write):
    """Make one conversation for each image and category; back to COCO, boxes move by at most half a step."""
    records = to_ours(coco(), "coco", check_images=True, prompt="框出图中的{phrase}")
    assert [record["id"] for record in records] == ["5-交通灯", "5-dog", "6-dog"]
    assert records[0]["conversations"] == turns_of(
        "Picture 1: <img>a.png</img>\n框出图中的交通灯",
        "<ref>交通灯</ref><box>(15,41),(172,145)</box><box>(500,500),(501,502)</box>",
    )
    assert records[2]["conversations"][1]["value"] == "<ref>dog</ref><box>(500,500),(999,999)</box>"
    convert(folder / "out.json", folder / "coco.json", source_format="ours", target_format="coco")
    result = json.loads((folder / "coco.json").read_text("utf-8"))
    assert {image["file_name"]: (image["width"], image["height"]) for image in result["images"]} == {
        "a.png": (640, 480),
        "b.png": (50, 2000),
    }
    names = {category["id"]: category["name"] for category in result["categories"]}
    sizes = {image["id"]: (image["width"], image["height"]) for image in result["images"]}
    expected = [annotation for annotation in coco()["annotations"] if not annotation.get("iscrowd")]
    found = sorted(result["annotations"], key=lambda annotation: annotation["bbox"])
    for theirs, ours in zip(sorted(expected, key=lambda annotation: annotation["bbox"]), found, strict=True):
        width, height = sizes[ours["image_id"]]
        assert names[ours["category_id"]] == {1: "dog", 3: "交通灯"}[theirs["category_id"]]
        for index, step in enumerate((width / 1000, height / 1000)):
            (x, w), (other_x, other_w) = ((box["bbox"][index], box["bbox"][index + 2]) for box in (theirs, ours))
            end = min(x + w, (width, height)[index])
            assert abs(x - other_x) <= step / 2 + 0.01 and abs(end - other_x - other_w) <= step / 2 + 0.02
    again = convert(folder / "coco.json", folder / "again.json", source_format="coco", prompt="框出图中的{phrase}")
    assert again.num_written == 3
    assert [r["conversations"] for r in read(folder / "again.json")] == [r["conversations"] for r in records]


def test_refcoco_and_back(to_ours, folder):
    """Make one conversation for each sentence, from flat records in either box format and from joined refs."""
    flat = [
        {"image": "a.png", "bbox": [64, 48, 64, 48], "sentences": [{"sent": "left dog"}, {"sent": "the dog"}]},
        {"file_name": "b.png", "width": 50, "height": 2000, "bbox": [0, 0, 25, 500], "sentence": "top"},
    ]
    records = to_ours(flat, "refcoco", check_images=True)
    answers = [record["conversations"][1]["value"] for record in records]
    assert answers[0] == "<ref>left dog</ref><box>(100,100),(200,200)</box>"
    assert answers[2] == "<ref>top</ref><box>(0,0),(500,250)</box>"
    assert [record["id"] for record in records] == ["0-0", "0-1", "1"]
    corners = [record | {"bbox": [x, y, x + w, y + h]} for record in flat for x, y, w, h in [record["bbox"]]]
    assert to_ours(corners, "refcoco", check_images=True, box_format="xyxy") == records
    refs = [{"ref_id": 9, "ann_id": 1, "file_name": "a_1.png", "sentences": [{"sent": "x"}]}]
    (joined,) = to_ours(coco(refs=refs), "refcoco")
    assert joined["id"] == "9" and joined["conversations"][1]["value"] == "<ref>x</ref><box>(15,41),(172,145)</box>"

    to_ours(flat, "refcoco", check_images=True)
    convert(folder / "out.json", folder / "refs.json", source_format="ours", target_format="refcoco")
    result = json.loads((folder / "refs.json").read_text("utf-8"))
    assert [[sentence["sent"] for sentence in ref["sentences"]] for ref in result] == [["left dog", "the dog"], ["top"]]
    assert result[0]["bbox"] == [64.32, 48.24, 64.0, 48.0]
    convert(folder / "refs.json", folder / "again.json", source_format="refcoco")
    assert [r["conversations"] for r in read(folder / "again.json")] == [r["conversations"] for r in records]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bbox": [10, 20, 700, 9]}, r"annotations\[0\] \(id 8\).bbox: .*640 x 480"),
        ({"bbox": [10, 20, 0, 9]}, "has no area"),
        ({"bbox": [1, 2, 3]}, "use four numbers"),
        ({"image_id": 7}, r"image_id: 7 is unknown"),
        ({"category_id": [1]}, r"category_id: \[1\] is unknown"),
    ],
)
def test_each_wrong_annotation_is_named(changes, message, to_ours):
    annotation = {"id": 8, "image_id": 5, "category_id": 1, "bbox": [0, 0, 5, 5]} | changes
    with pytest.raises(DataError, match=message):
        to_ours(coco(annotations=[annotation]), "coco")
