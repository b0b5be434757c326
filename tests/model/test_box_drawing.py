"""Boxes drawn on images: lines, labels, and cases without anything to draw."""

import numpy as np
import pytest
from helpers.images import is_color
from PIL import Image

from qwen_vl.model import box_drawing_qwen
from qwen_vl.model.box_drawing_qwen import COLORS, draw_boxes, find_font, to_pixels


@pytest.fixture
def no_system_font(monkeypatch):
    monkeypatch.setattr(box_drawing_qwen, "FONT_DIRS", ())
    find_font.cache_clear()
    yield
    find_font.cache_clear()


def test_coordinates_are_thousandths_of_width_and_height():
    assert to_pixels((100, 200, 500, 999), (200, 100)) == (20, 20, 100, 99)
    assert to_pixels((500, 999, 100, 200), (200, 100)) == (20, 20, 100, 99)  # corners in any order
    assert to_pixels((-5, 0, 1000, 2000), (200, 100)) == (0, 0, 199, 99)  # moved to the edge
    assert to_pixels((0, 0, 999, 999), (1, 1)) == (0, 0, 0, 0)


def test_lines_lie_on_the_box_and_each_phrase_has_its_color():
    image = Image.new("RGB", (400, 200))
    boxes = [{"box": (100, 300, 400, 900), "ref": "a"}, {"box": (500, 300, 700, 800)}]
    boxes.append({"box": (800, 300, 950, 800), "ref": "b"})
    drawn = draw_boxes(image, boxes)
    assert image.getbbox() is None, "the caller's picture must stay as it was"
    first, second = is_color(drawn, COLORS[0]), is_color(drawn, COLORS[1])
    assert first[60:181, 40].all() and first[60:181, 160].all() and first[180, 40:161].all()
    assert not first[100:170, 50:150].any(), "the inside stays visible"
    assert first[60:161, 200].all(), "a box without a phrase continues the one before it"
    assert second[60:161, 320].all() and not second[:, :300].any()


def test_label_stays_inside_the_image_and_grows_with_it(no_system_font):
    heights = []
    for size in ((320, 240), (640, 480), (1500, 1100)):
        drawn = draw_boxes(Image.new("RGB", size), [{"box": (900, 0, 990, 990), "ref": "a long label " * 20}])
        assert drawn.size == size
        label = is_color(drawn, COLORS[0])[:, size[0] // 3]  # left of the box there is only the label
        heights.append(int(label.sum()))
        assert label[0] and heights[-1] < size[1] / 2
        assert is_color(drawn, "#ffffff").any(), "the text is white on the color"
    assert heights == sorted(set(heights))


@pytest.mark.parametrize(("size", "drawn"), [((1, 1), (320, 320)), ((15, 900), (15, 900)), ((2000, 20), (2000, 20))])
def test_extreme_images_can_be_drawn_on(size, drawn):
    boxes = [{"box": (0, 0, 999, 999), "ref": "label"}, {"box": (5, 5, 5, 5), "ref": ""}]
    boxes.append({"box": (0, 0, 9, 9), "ref": " "})
    boxes.append({"box": (-(10**400), 3, 10**400, 9), "ref": "a\0b\ud800\x1b" * 9999})
    assert draw_boxes(Image.new("L", size), boxes).size == drawn


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (8, 8), (199, 120), (200, 64), (900, 64), (640, 480)])
def test_a_label_does_not_cover_what_it_labels(size):
    """Check that small images are enlarged by a whole factor and labels are outside their boxes if there is room."""
    for box in ((250, 250, 750, 750), (0, 0, 400, 800), (100, 20, 900, 400), (600, 0, 999, 999), (0, 600, 999, 999)):
        drawn = draw_boxes(Image.new("RGB", size), [{"box": box, "ref": "cat"}])
        factor = drawn.width // size[0]
        assert drawn.size == (size[0] * factor, size[1] * factor) and (factor == 1) == (max(size) >= 200)
        left, top, right, bottom = to_pixels(box, drawn.size)
        assert (np.asarray(drawn).min(axis=-1) > 150).any(), "the label is written"
        inside = np.asarray(drawn)[top + 3 : bottom - 2, left + 3 : right - 2]
        assert inside.size and not inside.any(), (box, "the inside stays as it was")
    whole = draw_boxes(Image.new("RGB", size), [{"box": (0, 0, 999, 999), "ref": "cat"}])
    covered = (np.asarray(whole)[4:-4, 4:-4] != 0).any(axis=-1).mean()
    assert 0 < covered < 0.1, "no room around it: a corner is covered"


def test_characters_without_a_font_are_reported(no_system_font):
    with pytest.warns(UserWarning, match="no font for the characters of '一只狗'"):
        drawn = draw_boxes(Image.new("RGB", (320, 240)), [{"box": (100, 300, 900, 900), "ref": "一只狗"}])
    assert is_color(drawn, COLORS[0])[75, 32:200].any()  # box and label are drawn anyway


def test_a_broken_font_file_is_skipped(tmp_path, monkeypatch):
    # Pillow looks for a font of the same name in the system, so the name must not be that of a real one.
    (tmp_path / "broken-wqy-microhei.ttc").write_bytes(b"no font")
    monkeypatch.setattr(box_drawing_qwen, "FONT_DIRS", (str(tmp_path), str(tmp_path / "missing")))
    find_font.cache_clear()
    assert find_font() is None
    find_font.cache_clear()
