"""The preview as a PNG."""

import io

import pytest
from PIL import Image, ImageColor

from qwen_vl.data.preview import png_page, preview
from qwen_vl.model.box_drawing_qwen import COLORS


def test_png_shows_the_same(data, make_checkpoint, tmp_path):
    page = preview.preview(data, make_checkpoint())
    with Image.open(io.BytesIO(png_page.render(page))) as image:
        colors = {color: count for count, color in image.convert("RGB").getcolors(2**22)}
        assert image.width == png_page.WIDTH and image.height > 600
    for color in (png_page.TARGET, png_page.IGNORED, COLORS[0], COLORS[-1]):
        assert colors[ImageColor.getrgb(color)] > 50
    page.samples *= 200
    with pytest.raises(ValueError, match="smaller --num"):
        png_page.render(page)
