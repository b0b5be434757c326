"""Scores against literals, and the report's images."""

import json
import math

import pytest
import report
from helpers.drawings import Drawing, check, number_of, panels_of
from PIL import Image, ImageColor

from qwen_vl.evaluation import metrics
from qwen_vl.model import box_drawing_qwen


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
    panels = panels_of(report.loss_svg(curves))
    assert [title for title, _ in panels] == list(curves)[:-1]
    logarithmic = []
    for (title, root), points in zip(panels, curves.values(), strict=False):
        drawing = check(root, {"loss": points})  # in the plot, at their heights
        assert len(drawing.dots) == sum(math.isfinite(y) for _, y in points), title  # a point alone would not be seen
        steps = [number_of(text) for node, text in drawing.texts if node.get("text-anchor") == "middle"]
        assert steps and all(step == round(step) for step in steps)
        values = [value for value, _ in drawing.ticks]
        logarithmic.append(values[0] > 0 and values[-1] / values[0] >= 1000)
    assert logarithmic == [title == "gaps and spikes" for title, _ in panels]
    ((_, long),) = panels_of(report.loss_svg({"long": [(n, 1.0) for n in range(100)]}))
    assert Drawing(long).dots == [] and len(Drawing(long).pieces) == 1


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
    with Image.open(tmp_path / "answers.png") as drawn:
        assert drawn.width > 200
        colors = {color for _, color in drawn.getcolors(10**6)}
    assert ImageColor.getrgb(box_drawing_qwen.COLORS[0]) in colors  # of the box
    assert "![boxes](answers.png)" in text and "![training loss](loss.svg)" in text
    ((title, root),) = panels_of((tmp_path / "loss.svg").read_text(encoding="utf-8"))
    assert title == "full" and Drawing(root).size[0] > 200 and len(Drawing(root).dots) == 1


def test_answers_are_drawn_in_rows_below_the_iou_of_their_boxes(tmp_path):
    said = {"x": "<ref>a</ref><box>(0,0),(500,500)</box>"}
    kinds = {"red": (60, 40), "green": (400, 900), "blue": (384, 384)}
    examples = [
        report.Example("?", answer, said, Image.new("RGB", size, color))
        for answer in ("<box>(0,0),(500,500)</box>", "")
        for color, size in kinds.items()
    ]
    report.draw_answers(examples, tmp_path / "answers.png")
    side, above, margin = report.SHOWN_SIDE, report.TITLE_HEIGHT, report.MARGIN
    with Image.open(tmp_path / "answers.png") as sheet:
        assert sheet.size == (4 * (side + margin) + margin, 2 * (side + above) + margin)
        for number, color in enumerate([*kinds, *kinds]):
            left, top = margin + (side + margin) * (number % 4), (side + above) * (number // 4)
            title = sheet.crop((left, top, left + side, top + above))
            assert (title.convert("L").getextrema()[0] < 100) is (number < 3), "an IoU needs a right answer"
            width, height = report.scaled(examples[number].image).size
            assert max(width, height) == side
            inside = (left + width * 3 // 4, top + above + height * 3 // 4)
            assert sheet.getpixel(inside) == ImageColor.getrgb(color)
