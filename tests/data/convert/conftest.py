"""Fixtures of the tests of conversions."""

import json

import pytest
from PIL import Image

from qwen_vl.data.conversations import read
from qwen_vl.data.convert.convert import convert


@pytest.fixture
def folder(tmp_path):
    """Return a folder with images a.png (640 x 480) and b.png (50 x 2000)."""
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    Image.new("RGB", (50, 2000)).save(tmp_path / "b.png")
    return tmp_path


@pytest.fixture
def to_ours(folder, write):
    """Return a function that converts content, bytes if JSON Lines, to ours and reads the result."""

    def run(content, form, **options):
        name = "source.jsonl" if isinstance(content, bytes) else "source.json"
        options = {"source_format": form, "check_images": False} | options
        convert(write(content, name), folder / "out.json", **options)
        return read(folder / "out.json", check_images=options["check_images"])

    return run


@pytest.fixture
def back(folder, write):
    """Return a function that converts our records to another format and back, and returns both results."""

    def run(records, form, **options):
        paths = [write(records, "ours.json"), folder / "theirs.json", folder / "again.json"]
        convert(paths[0], paths[1], source_format="ours", target_format=form, check_images=False, **options)
        convert(paths[1], paths[2], source_format=form, check_images=False, **options)
        return json.loads(paths[1].read_text("utf-8")), json.loads(paths[2].read_text("utf-8"))

    return run
