"""Preprocessing of images: bit-exact numbers, and the image processor."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import noise
from PIL import Image

from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import CLIP_MEAN, CLIP_STD, QWenImageProcessor, pixels

pytestmark = pytest.mark.filterwarnings("error")


# ---- the numbers ----


def test_pixels_equal_those_of_the_original_bit_for_bit(golden, in_golden_dir):
    for name, expected in golden("image_preprocess.json").items():
        values = pixels(read_image(f"images/{name}"), 448)
        assert values.dtype == torch.float32 and values.shape == (3, 448, 448)
        if expected["mode"].startswith("I;16"):
            continue  # Difference: gray of 16 bits is scaled to 8 and not cut off, so it does not become white
        assert values.flatten()[:8].tolist() == expected["first8"], name
        assert hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest() == expected["float_sha256"], name


def test_pixels_equal_the_recorded_bytes_with_difference_zero(golden, in_golden_dir):
    if not Path("image_preprocess_u8.npz").is_file():
        pytest.skip("only the full set of recorded outputs has the resized images")
    levels = golden("image_preprocess_u8.npz")
    modes = {name: expected["mode"] for name, expected in golden("image_preprocess.json").items()}
    for name in levels.files:
        if modes.get(name, "").startswith("I;16"):
            continue  # Difference: as above
        u8 = torch.from_numpy(levels[name])
        u8 = u8.permute(2, 0, 1) if u8.shape[-1] == 3 else u8
        expected = (u8.float() / 255 - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
        assert (pixels(read_image(f"images/{name}"), 448) - expected).abs().max() == 0.0, name


def test_the_order_of_the_resize_passes_does_not_depend_on_pillow():
    """Compare with records of Pillow 13's own resize, at sizes around which it starts with the height."""
    recorded = {
        (20, 24): "b22bf210fa0cc4d5",
        (20, 25): "1d4184abbd8c3e50",
        (9, 17): "f6cbb4fc22666e59",
        (40, 64): "2dcd5e7448eb81dd",
        (40, 65): "e3e3f67aaaed86c2",
        (16, 100): "0f123427bfefba41",
    }
    std, mean = (torch.tensor(values)[:, None, None] for values in (CLIP_STD, CLIP_MEAN))
    for size, expected in recorded.items():
        levels = ((pixels(noise(*size), 16) * std + mean) * 255).round().to(torch.uint8)
        digest = hashlib.sha256(levels.permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()
        assert digest.startswith(expected), size


# ---- the image processor ----


def test_the_image_processor_takes_one_or_many_in_order(tmp_path):
    red, blue = Image.new("RGB", (5, 9), "red"), Image.new("RGBA", (9, 5), "blue")
    red.save(tmp_path / "red.png")
    processor = QWenImageProcessor(image_size=8)
    one = processor(red).pixel_values
    assert one.shape == (1, 3, 8, 8) and one.dtype == torch.float32
    many = processor([[blue], ["red.png", (blue,)]], search_dirs=[tmp_path], return_tensors="np").pixel_values
    assert isinstance(many, np.ndarray) and many.shape == (3, 3, 8, 8)
    assert np.array_equal(many[1], one[0].numpy()) and np.array_equal(many[0], many[2])
    with pytest.raises(ValueError, match="no image given"):
        processor([])
    with pytest.raises(ValueError, match="image_size: 0"):
        QWenImageProcessor(image_size=0)


def test_the_image_processor_round_trips(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        QWenImageProcessor(image_size=56).save_pretrained(tmp_path)
        assert (tmp_path / "preprocessor_config.json").is_file() and (tmp_path / "image_processing_qwen.py").is_file()
        assert QWenImageProcessor.from_pretrained(tmp_path).image_size == 56
        assert QWenImageProcessor.from_pretrained(tmp_path, image_size=28).image_size == 28
