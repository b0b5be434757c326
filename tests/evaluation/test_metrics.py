"""Scores against literals, and the report's images."""

import json
import math

import pytest
import report
from PIL import Image

from qwen_vl.evaluation import metrics


def test_agreement_forgives_case_space_and_a_full_stop_only():
    predictions = ["Yes.", " red", "红色。", "no way", ""]
    assert metrics.share_that_agree(predictions, ["yes", "red", "红色", "no", "no"]) == pytest.approx(3 / 5)
    with pytest.raises(ValueError, match="no answers"):
        metrics.share_that_agree([], [])


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
    with pytest.raises(ValueError, match="share_that_agree"):
        metrics.box_accuracy(["x"], ["no box in the answer"])


def test_whatever_a_model_writes_is_scored():
    """Numbers that no image has, and those with more digits than Python reads."""
    right = "<box>(0,0),(100,100)</box>"
    hostile = ["<box>(0,0),(999999999,100)</box>", f"<box>(0,0),({'9' * 5000},100)</box>", "<box>(1.5,2),(3,4)</box>"]
    assert [len(metrics.find_boxes(text)) for text in hostile] == [1, 0, 0]
    assert metrics.box_accuracy([*hostile, "<|im_end|>" + right], [right] * 4) == pytest.approx(1 / 4)


def test_loss_curves_of_any_size_are_seen_whole():
    curves = {
        "usual": [(step, 1000 / step) for step in range(50, 1000, 50)],
        "one point": [(7, 2.0)],
        "negative": [(1, -1.0), (2, -3.0)],
        "zero": [(1, 0.0), (2, 0.0)],
        "gaps and spikes": [(1, math.nan), (2, 1e5), (3, math.inf), (4, 1e-7), (9, 0.5)],
        "nothing": [(1, math.nan)],
        "empty": [],
    }
    figure = report.curves_figure(curves)
    figure.canvas.draw()
    panels = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_title() for panel in panels] == list(curves)[:-1]
    for panel, points in zip(panels, curves.values(), strict=False):
        (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
        assert left < right and bottom < top
        (line,) = panel.lines
        assert line.get_marker() == "o"  # a point alone would not be seen
        assert len(line.get_ydata()) == len(points)
        known = [(x, y) for x, y in points if math.isfinite(y)]
        hidden = [(x, y) for x, y in known if not (left <= x <= right and bottom <= y <= top)]
        assert not hidden, (panel.get_title(), panel.get_xlim(), panel.get_ylim())
        assert all(tick == round(tick) for tick in panel.get_xticks())
    assert [panel.get_yscale() for panel in panels].index("log") == 4
    assert report.curves_figure({"long": [(n, 1.0) for n in range(100)]}).axes[0].lines[0].get_marker() == "None"


def test_report_holds_every_stage_and_draws_the_boxes(tmp_path):
    scores = {
        "before": {"box": report.Score(0.0, 4, "IoU >= 0.5")},
        "after": {"box": report.Score(0.75, 4, "IoU >= 0.5"), "vqa": report.Score(0.5, 2, "exact match")},
    }
    said = {"before": "\x06 | `garbage`", "after": "<ref>红色圆形</ref><box>(100,100),(500,500)</box>"}
    image = Image.new("RGB", (64, 48), "white")
    examples = [report.Example("where?", "<box>(100,100),(500,400)</box>", said, image)]
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
