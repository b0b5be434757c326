"""Overlays: boxes on the image that they belong to."""

from PIL import ImageColor

from qwen_vl.data.preview import preview
from qwen_vl.model.box_drawing_qwen import COLORS


def test_boxes_are_drawn_on_the_image_they_belong_to(data, make_checkpoint):
    """Enlarge a tiny image first, or the lines would cover it. The quad belongs to the last image named."""
    photo, tiny = preview.preview(data, make_checkpoint(), num=1).samples[0].images
    assert tiny.size == (320, 160)
    box, quad = ImageColor.getrgb(COLORS[0]), ImageColor.getrgb(COLORS[-1])
    assert tiny.getpixel((80, 100)) == box and tiny.getpixel((160, 120)) == box
    assert tiny.getpixel((160, 80)) == (255, 255, 255)
    assert photo.getpixel((photo.width // 2, photo.height // 10)) == quad
    assert box not in {color for _, color in photo.getcolors(2**20)}
