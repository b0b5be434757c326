"""Images, from RGB to the numbers that the vision tower reads.

`pixels` turns an RGB PIL image into a normalized tensor. `QWenImageProcessor` opens and turns the images of a batch.
"""

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from .image_loading_qwen import _in_memory, _to_rgb, open_picture

IMAGE_SIZE = 448
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pixels(picture, image_size=IMAGE_SIZE):
    """float32 [3, image_size, image_size]: the picture squashed to a square and normalised.

    Source: docs/checkpoint_format.md section 4.
    """
    picture = _to_rgb(picture, *_in_memory(picture))
    levels = torch.from_numpy(np.array(_squash(picture, image_size))).permute(2, 0, 1)  # uint8 [3, S, S]
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    # Divide, subtract, divide, each rounded to float32: any other order differs from the reference in the last bit.
    return levels.contiguous().to(torch.float32).div_(255).sub_(mean).div_(std)


def _squash(picture, size):
    """The picture as size x size, bicubic, the aspect ratio not kept.

    One axis after the other, with rounding to bytes between, so their order shows in the last bits. Pillow 13 shrinks
    a picture's height first where that saves the most work, Pillow 12 and older nearly never: the order is fixed
    here to that of Pillow 13, with which the reference was recorded, and the numbers are the same under each.
    """
    width, height = picture.size
    height_first = height > size and height - size > 2 * (width - size)
    between = (width, size) if height_first else (size, height)
    for step in (between, (size, size)):
        picture = picture.resize(step, Image.Resampling.BICUBIC)
    return picture


class QWenImagesKwargs(ImagesKwargs, total=False):
    """What `from_pretrained` may override, for transformers."""

    image_size: int


class QWenImageProcessor(BaseImageProcessor):
    """`processor(pictures)` -> BatchFeature with pixel_values float32 [N, 3, image_size, image_size].

    Takes one picture or a list (nested lists are flattened, in order) of whatever `open_picture` takes.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (the base class declares it so)
    valid_kwargs = QWenImagesKwargs

    def __init__(self, image_size=IMAGE_SIZE, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size: {image_size!r}; use a positive number of pixels, such as {IMAGE_SIZE}")
        self.image_size = image_size

    def preprocess(self, images, *, return_tensors="pt", **options):
        """BatchFeature(pixel_values); options as in `open_picture`. Raises PictureError, and ValueError if empty."""
        pictures = list(_flatten(images))
        if not pictures:
            raise ValueError("no picture given; leave the image processor out for text alone")
        # One after another, so that only the small squares of a batch are in memory together.
        rows = [pixels(open_picture(picture, **options), self.image_size) for picture in pictures]
        return BatchFeature({"pixel_values": torch.stack(rows)}, tensor_type=return_tensors)


QWenImageProcessor.register_for_auto_class("AutoImageProcessor")


def _flatten(images):
    """The pictures of arbitrarily nested lists and tuples, in order."""
    if not isinstance(images, list | tuple):
        yield images
        return
    for item in images:
        yield from _flatten(item)
