"""Fixtures of the tests of the check."""

import io
import shutil

import pytest
from PIL import Image


@pytest.fixture
def vocab_dir(published_vocab, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(published_vocab, folder / "qwen.tiktoken")
    return folder


@pytest.fixture
def images(tmp_path, golden_images):
    """Return a folder of images: good.png, and one for each problem that an image can have."""
    folder = tmp_path / "pics"
    folder.mkdir()
    shutil.copy(golden_images[0], folder / "good.png")
    jpeg = io.BytesIO()
    noise = Image.effect_noise((64, 48), 90).convert("RGB")
    noise.save(jpeg, "JPEG")
    (folder / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(folder / "turned.jpg", exif=turned)
    Image.new("RGB", (300, 20)).save(folder / "flat.png")
    return folder
