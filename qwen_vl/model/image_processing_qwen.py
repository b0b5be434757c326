"""Preprocessing of images for the vision tower.

`pixels` converts an RGB PIL image to a normalized tensor. `QWenImageProcessor` opens and converts those of a batch.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from .image_loading_qwen import OpenImage, _in_memory, _to_rgb, image_opener, read_image

IMAGE_SIZE = 448
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pixels(image: Image.Image, image_size: int = IMAGE_SIZE) -> torch.Tensor:
    """Return float32 [3, image_size, image_size]: the image resized to a square and normalized.

    Source: docs/checkpoint_format.md section 4.
    """
    image = _to_rgb(image, *_in_memory(image))
    levels = torch.from_numpy(np.array(squash(image, image_size))).permute(2, 0, 1)  # uint8 [3, S, S]
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    # Divide, subtract, divide, each rounded to float32: any other order differs from the original in the last bit.
    return levels.contiguous().to(torch.float32).div_(255).sub_(mean).div_(std)


def open_pixels(references: Iterable[str], image_size: int, open_image: OpenImage | None) -> dict[str, torch.Tensor]:
    """Return {reference: pixels [3, image_size, image_size]}. Each reference is opened once, by `open_image`.

    None means `read_image`. Raise ImageError if it cannot open an image, or refuses to.
    """
    opener = image_opener(open_image)
    return {name: pixels(opener(name), image_size) for name in dict.fromkeys(references)}


def squash(image: Image.Image, size: int) -> Image.Image:
    """Return the image resized to size x size, bicubic, without keeping the aspect ratio.

    Each axis is resized alone and rounded to bytes, so the order of the axes changes the last bits. Pillow 13 resizes
    the height first if that saves work; Pillow 12 and older rarely do. This function always uses the order of Pillow
    13, with which the original's outputs were recorded, so every version gives the same numbers.
    """
    width, height = image.size
    height_first = height > size and height - size > 2 * (width - size)
    between = (width, size) if height_first else (size, height)
    for step in (between, (size, size)):
        image = image.resize(step, Image.Resampling.BICUBIC)
    return image


class QWenImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict, which mypy does not see
    """The settings that `from_pretrained` may override, for transformers."""

    image_size: int


class QWenImageProcessor(BaseImageProcessor):
    """An image processor: `processor(images)` -> BatchFeature with pixel_values float32 [N, 3, image_size, image_size].

    It takes one image or a list of what `read_image` takes. Nested lists are flattened, in order.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (the base class declares it so)
    valid_kwargs = QWenImagesKwargs

    def __init__(self, image_size: int = IMAGE_SIZE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size: {image_size!r}; use a positive number of pixels, such as {IMAGE_SIZE}")
        self.image_size = image_size

    def preprocess(
        self, images: Any, *, return_tensors: str | None = "pt", open_image: OpenImage | None = None, **options: Any
    ) -> BatchFeature:
        """Return BatchFeature(pixel_values) of one image or nested lists of images.

        PIL images are only converted. `open_image` opens all others; without it, `read_image` does, with `options`:
        search_dirs, timeout, max_bytes, max_pixels. Raise ImageError if an image cannot be opened. Raise ValueError if
        there is none, or for `open_image` together with options, which it would not receive.
        """
        flat = list(_flatten(images))
        if not flat:
            raise ValueError("no image given; leave the image processor out for text alone")
        given = sorted(name for name, value in options.items() if value not in (None, (), []))
        if open_image is not None and given:
            raise ValueError(f"{', '.join(given)}: open_image decides what is opened; pass one or the other")
        opener = image_opener(open_image)

        def opened(image: Any) -> Image.Image:
            if open_image is None or isinstance(image, Image.Image):
                return read_image(image, **options)
            return opener(image)

        # One at a time, so that only the resized images are in memory together.
        rows = [pixels(opened(image), self.image_size) for image in flat]
        return BatchFeature({"pixel_values": torch.stack(rows)}, tensor_type=return_tensors)


QWenImageProcessor.register_for_auto_class("AutoImageProcessor")


def _flatten(images: Any) -> Iterator[Any]:
    """Yield the images of arbitrarily nested lists and tuples, in order."""
    if not isinstance(images, list | tuple):
        yield images
        return
    for item in images:
        yield from _flatten(item)
