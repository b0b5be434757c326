"""Fixtures of the data tests: the published tokenizer, and a writer of conversation files."""

import json
from pathlib import Path

import pytest

from qwen_vl.model.tokenization_qwen import QWenTokenizer


@pytest.fixture(scope="session")
def tokenizer(published_vocab):
    return QWenTokenizer(published_vocab)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a data file, from records or from raw bytes, and returns its path."""

    def write_file(content, name="data.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        path.write_bytes(raw)
        return path

    return write_file


@pytest.fixture(scope="session")
def golden_images():
    """Return the paths of two different images."""
    folder = Path(__file__).parents[1] / "golden" / "images"
    return folder / "rgb.png", folder / "palette.png"
