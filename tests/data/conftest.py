"""Fixtures of the data tests: the published tokenizer, images, and files of conversations."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from helpers.records import VARIED, write_file
from PIL import Image

from qwen_vl.model.tokenization_qwen import QWenTokenizer


@pytest.fixture(scope="session")
def tokenizer(published_vocab):
    return QWenTokenizer(published_vocab)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a data file, from records or from raw bytes, and returns its path."""
    return partial(write_file, tmp_path)


@pytest.fixture(scope="session")
def golden_images():
    """Return the paths of two different images."""
    folder = Path(__file__).parents[1] / "golden" / "images"
    return folder / "rgb.png", folder / "palette.png"


@pytest.fixture
def data(write, tmp_path, golden_images):
    """Return a file with the VARIED records, next to their images."""
    for name, image in zip(("a.png", "b.png"), golden_images, strict=True):
        shutil.copy(image, tmp_path / name)
    return write(VARIED)


@pytest.fixture
def image(tmp_path):
    """Write a.png next to the data."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
