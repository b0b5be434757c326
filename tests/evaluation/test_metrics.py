"""Scores against literals, and the report's pictures."""

import json

import pytest
from PIL import Image

from qwen_vl.evaluation import metrics, report


def test_exact_match_forgives_case_space_and_a_full_stop_only():
    predictions = ["Yes.", " red", "红色。", "no way", ""]
    assert metrics.exact_match(predictions, ["yes", "red", "红色", "no", "no"]) == pytest.approx(3 / 5)
    with pytest.raises(ValueError, match="no answers"):
        metrics.exact_match([], [])


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((10, 10, 0, 0), (0, 0, 10, 5), 0.5),  # corners in any order
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),  # no area
    ],
)
def test_iou(one, other, wanted):
    assert metrics.iou(one, other) == pytest.approx(wanted)
    assert metrics.iou(other, one) == pytest.approx(wanted)


def test_box_accuracy_counts_missing_and_malformed_boxes_as_wrong():
    right = "<ref>dog</ref><box>(0,0),(100,100)</box>"
    predictions = [right, "<box>(0,0),(100,51)</box>", "<box>(0,0),(100,49)</box>", "no box", "<box>(0,0),(100</box>"]
    assert metrics.box_accuracy(predictions, [right] * 5) == pytest.approx(2 / 5)
    with pytest.raises(ValueError, match="exact_match"):
        metrics.box_accuracy(["x"], ["no box in the answer"])


def test_whatever_a_model_writes_is_scored():
    """Numbers that no picture has, and those with more digits than Python reads."""
    right = "<box>(0,0),(100,100)</box>"
    hostile = ["<box>(0,0),(999999999,100)</box>", f"<box>(0,0),({'9' * 5000},100)</box>", "<box>(1.5,2),(3,4)</box>"]
    assert [len(metrics.find_boxes(text)) for text in hostile] == [1, 0, 0]
    assert metrics.box_accuracy([*hostile, "<|im_end|>" + right], [right] * 4) == pytest.approx(1 / 4)


def test_report_holds_every_stage_and_draws_the_boxes(tmp_path):
    scores = {
        "before": {"box": report.Score(0.0, 4, "IoU >= 0.5")},
        "after": {"box": report.Score(0.75, 4, "IoU >= 0.5"), "vqa": report.Score(0.5, 2, "exact match")},
    }
    said = {"before": "\x06 | `garbage`", "after": "<ref>红色圆形</ref><box>(100,100),(500,500)</box>"}
    picture = Image.new("RGB", (64, 48), "white")
    examples = [report.Example("where?", "<box>(100,100),(500,400)</box>", said, picture)]
    path = report.write(
        tmp_path, title="T", facts={"a": "b"}, scores=scores, curves={"full": [(1, 2.0)]}, examples=examples
    )
    text = path.read_text(encoding="utf-8")
    assert "| box | IoU >= 0.5 | 4 | 0.0% | 75.0% |" in text
    assert "| vqa | exact match | 2 |  | 50.0% |" in text
    assert "\\| 'garbage'" in text and "\x06" not in text
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["scores"]["after"]["vqa"]["count"] == 2
    for name in ("loss.png", "answers.png"):
        with Image.open(tmp_path / name) as drawn:
            assert drawn.width > 200
