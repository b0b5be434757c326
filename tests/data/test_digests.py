"""Digests of data files: those of large files are kept until the file changes."""

import hashlib
import os

import pytest

from qwen_vl.data import digests


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """Return the list of files whose bytes are read; every file counts as large."""
    found, read = [], digests.bytes_digest
    monkeypatch.setattr(digests, "LARGE", 1)
    monkeypatch.setattr(digests, "bytes_digest", lambda path: found.append(str(path)) or read(path))
    monkeypatch.setenv("QWEN_VL_CACHE", str(tmp_path / "cache"))
    return found


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_a_large_file_is_read_again_only_if_it_changed(reads, tmp_path):
    file = tmp_path / "data.parquet"
    file.write_bytes(b"one")
    assert digests.file_digest(file) == digests.file_digest(file) == digest(b"one")
    assert len(reads) == 1
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert digests.file_digest(file) == digests.file_digest(file) == digest(b"two")
    assert len(reads) == 2
    for note in (tmp_path / "cache/digests").glob("*.json"):
        note.write_text("[")
    assert digests.file_digest(file) == digest(b"two") and len(reads) == 3


def test_without_a_folder_for_notes_every_call_reads(reads, tmp_path):
    (tmp_path / "cache").write_text("a file")
    (tmp_path / "data.parquet").write_bytes(b"one")
    for _ in range(2):
        assert digests.file_digest(tmp_path / "data.parquet") == digest(b"one")
    assert len(reads) == 2
