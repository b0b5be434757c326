"""Images made for tests, and the colors in drawn ones."""

import io

import numpy as np
from PIL import Image


def encoded(image=None, kind="PNG"):
    """Return the bytes of an image file."""
    stream = io.BytesIO()
    (image or Image.new("RGB", (6, 4), (200, 30, 60))).save(stream, kind)
    return stream.getvalue()


def noise(width, height):
    """Return a fixed RGB image that shows any change of rounding."""
    levels = (np.arange(width * height * 3, dtype=np.int64) ** 2 % 251).astype(np.uint8)
    return Image.fromarray(levels.reshape(height, width, 3))


def rgb(color):
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def is_color(image, color):
    """Return a boolean array [height, width], True where the image has exactly this color."""
    return (np.asarray(image) == rgb(color)).all(axis=-1)
