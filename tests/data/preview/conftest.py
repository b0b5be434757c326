"""Fixtures of the tests of the preview."""

import shutil
from pathlib import Path

import pytest
from helpers.records import turns_of
from PIL import Image

GOLDEN_IMAGE = Path(__file__).parents[2] / "golden" / "images" / "photo.jpg"
HOSTILE = (
    '</span><script>alert("1")</script> <img src="http://evil.example/x.png"> &lt; \x00\x1b\x7f 好\n\n"\' <|im_end|>'
)


@pytest.fixture
def data(write, tmp_path):
    """Return a file with markup in every text field, several images, one of them missing, boxes and a quad."""
    shutil.copy(GOLDEN_IMAGE, tmp_path / "photo.jpg")
    Image.new("RGB", (8, 4), "white").save(tmp_path / "tiny.png")
    question = f"Picture 1: <img>photo.jpg</img>\nPicture 2: <img>tiny.png</img>\n{HOSTILE.replace('<img', '<im')}"
    answer = (
        "<ref>a <b></ref><box>(250,250),(750,750)</box> Picture 1: <quad>(100,100),(900,100),(900,900),(100,900)</quad>"
    )
    return write(
        [
            {"id": "<script>7</script>", "conversations": turns_of(question, answer, "And?", "No."), "weight": 2},
            {"id": "gone", "system": "Kurz & knapp.", "conversations": turns_of("<img>gone&.png</img>?", "A b.")},
            {"id": 3, "conversations": turns_of("q " * 40, "a" * 90, "q", "a")},
        ]
    )
