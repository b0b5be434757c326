"""Images of messages: what tells one from another, and what is kept of a large one."""

import pytest
import torch
from helpers.images import noise
from PIL import Image

from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.serving.conversation import Message, SentImage


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (500, 20), (31, 900), (65, 63)])
def test_a_squashed_image_has_the_same_pixels_for_the_model(size):
    image = SentImage.of(noise(*size))
    small = image.squashed(64)
    assert torch.equal(pixels(small.image, 64), pixels(image.image, 64))
    assert (small.image.size, small.size, small.digest) == ((64, 64), size, image.digest)
    assert small == image and image.image.size == size


def test_images_are_told_by_size_and_pixels():
    images = [SentImage.of(Image.new("RGB", size, color)) for size in ((4, 6), (6, 4)) for color in ("red", "blue")]
    assert len({*images}) == 4
    assert SentImage.of(Image.new("RGBA", (4, 6), (255, 0, 0, 255))) == images[0]


def test_only_users_send_images():
    image = SentImage.of(Image.new("RGB", (4, 6)))
    assert Message("user", ("What?", image)).images == (image,)
    with pytest.raises(ValueError, match="this assistant message holds an image"):
        Message("assistant", (image,))
