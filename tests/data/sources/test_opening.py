"""The format of a file by its first bytes, and what is inside its compression."""

import gzip

import pytest
from helpers.data_files import (
    BARE,
    error_everywhere,
    text,
    zstd,
)


def packed(kind, cut):
    return lambda path: path.write_bytes(kind(text(BARE))[:cut])


BROKEN = {
    "cut.json.gz": (packed(gzip.compress, -9), "cut.json.gz: damaged or cut short gzip"),
    "cut.json.zst": (packed(zstd, -5), "cut.json.zst: damaged or cut short zstd"),
    "none.jsonl.gz": (lambda path: path.write_bytes(gzip.compress(b"")), "none.jsonl.gz: empty"),
    "lfs.parquet": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "page.json": (lambda path: path.write_text("<!DOCTYPE html>\n<html>"), "a web page"),
    "data.json.bz2": (lambda path: path.write_bytes(b"BZh91AY"), "bunzip2"),
    "data.zip": (lambda path: path.write_bytes(b"PK\x03\x04"), "a zip archive"),
    "data.parquet.gz": (lambda path: path.write_bytes(gzip.compress(b"PAR1")), "Parquet inside gzip"),
    "wide.json": (lambda path: path.write_bytes("[]".encode("utf-16")), "UTF-16; save it as UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_opened_says_why(name, tokenizer, tmp_path):
    """Raise the same error in memory, in the check and in a stream, never a traceback of a library."""
    make, words = BROKEN[name]
    make(tmp_path / name)
    error_everywhere(tmp_path / name, words, tokenizer)
