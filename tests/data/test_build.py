"""The data set of a run: which files are cached, and several files with their weights and manifests."""

import json
import logging
from pathlib import Path

import pytest
from helpers.data_files import (
    BARE,
    ENCODING,
    FILES,
    FULL,
    hub,
)
from helpers.records import talk

from qwen_vl.data import skip_manifests
from qwen_vl.data.build import SourceOptions, load, load_file
from qwen_vl.data.conversations import read
from qwen_vl.data.dataset import ConversationDataset
from qwen_vl.data.mixing import parse_sources
from qwen_vl.data.sources import tokenized_cache
from qwen_vl.data.validation import DataError


def test_which_files_are_cached_where(data, tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("QWEN_VL_CACHE", str(tmp_path / "mine"))
    assert isinstance(load_file(data, tokenizer, ENCODING, SourceOptions()), ConversationDataset)  # too small
    named = SourceOptions(cache=str(tmp_path / "c"))
    assert isinstance(load_file(data, tokenizer, ENCODING, named), tokenized_cache.CachedDataset)
    data.write_bytes(data.read_bytes() + b" " * 2**20)
    assert isinstance(load_file(data, tokenizer, ENCODING, SourceOptions(cache="none")), ConversationDataset)
    assert not (tmp_path / "mine").exists()
    assert isinstance(load_file(data, tokenizer, ENCODING, SourceOptions()), tokenized_cache.CachedDataset)
    assert len(list((tmp_path / "mine").glob("*/samples.arrow"))) == 1
    monkeypatch.setenv("QWEN_VL_CACHE", str(data))  # a file
    assert isinstance(load_file(data, tokenizer, ENCODING, SourceOptions()), ConversationDataset)
    assert "cannot be used" in caplog.text
    with pytest.raises(OSError):
        load_file(data, tokenizer, ENCODING, SourceOptions(cache=str(data)))


def test_several_files_with_their_manifests(data, write, tokenizer, tmp_path, caplog):
    other = write([talk("x", "q"), talk("y", "q"), talk("z", "q")], "other.jsonl")
    manifest = tmp_path / "skip.json"
    manifest.write_text(json.dumps({"sha256": skip_manifests.sha256(other), "skip": [{"id": "y"}]}))
    sources = parse_sources([str(data), f"{other}:2"])
    with caplog.at_level(logging.INFO):
        dataset = load(sources, tokenizer, ENCODING, SourceOptions(cache="none"), skip_manifests=[manifest])
    assert [sample["id"] for sample in dataset] == ["a", 7, "data.json[2]", "cut", "x", "z", "x", "z"]
    assert [sample["source"] for sample in dataset] == [0] * 4 + [1] * 4
    assert dataset.names == ["data.json", "other.jsonl"]
    assert "2 samples, 4 in an epoch" in caplog.text
    data.write_text("[]")
    manifest.write_text(json.dumps({"sha256": "x", "skip": []}))
    with pytest.raises(DataError, match=r"made for none of .*data\.json, .*other\.jsonl"):
        load(sources, tokenizer, ENCODING, SourceOptions(cache="none"), skip_manifests=[manifest])


def test_a_pattern_and_a_mix_of_kinds(tokenizer, tmp_path, image):
    for name in ("data.jsonl.gz", "data.parquet"):
        FILES[name](tmp_path / name, FULL)
    sources = parse_sources([f"{tmp_path}/*.parquet:2", str(tmp_path / "data.jsonl.gz")])
    mixed = load(sources, tokenizer, ENCODING, SourceOptions(cache="none"))
    assert [sample["id"] for sample in mixed] == [*"abcabc", *"abc"]
    assert Path(mixed[2]["images"][0]).is_file()
    hub(tmp_path / "hub")
    assert read(f"{tmp_path}/hub/train*.parquet") == BARE and len(read(f"{tmp_path}/hub/*")) == 80
