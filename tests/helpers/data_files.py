"""Data files of every kind with the same records, and the error of one that cannot be read."""

import gzip
import json
from dataclasses import replace

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from qwen_vl.data.build import SourceOptions, load_file, stream
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.check import check as check_check
from qwen_vl.data.conversations import read
from qwen_vl.data.mixing import parse_sources
from qwen_vl.data.sources.streaming import StreamOptions
from qwen_vl.data.validation import DataError

Q, A = {"from": "user", "value": "What is it?"}, {"from": "assistant", "value": "A red box."}
BARE = [{"id": f"r{index}", "conversations": [Q, {**A, "value": f"Box {index}."}]} for index in range(40)]
FULL = [
    {"id": "a", "conversations": [Q, A]},
    {"id": "b", "system": "Be brief.", "weight": 2, "conversations": [Q, {**A, "loss": False}, Q, A]},
    {"id": "c", "weight": 0.5, "conversations": [{**Q, "value": "Picture 1: <img>a.png</img>\n狗?"}, A]},
]
ENCODING = EncodeOptions(max_length=600)
ONE_EPOCH = StreamOptions(epochs=1)


def table(records):
    return pa.Table.from_pylist(records, schema=pa.unify_schemas([pa.Table.from_pylist([r]).schema for r in records],
                                                                 promote_options="permissive"))  # fmt: skip


def arrow(new):
    def write(path, records):
        with new(str(path), table(records).schema) as writer:
            writer.write_table(table(records), max_chunksize=7)

    return write


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def text(records):
    return json.dumps(records, ensure_ascii=False, indent=1).encode()


def halves(content):
    return content[:99], content[99:]


def zstd(content):
    return pa.compress(content, "zstd", asbytes=True)


def folder(path, records):
    path.mkdir()
    (path / "1.jsonl").write_bytes(lines(records[:1]))
    (path / "2.jsonl.gz").write_bytes(gzip.compress(lines(records[1:2])))
    (path / "sub").mkdir()
    parquet.write_table(table(records[2:]), path / "sub" / "3.parquet")
    (path / "readme.json").write_text("{}")
    (path / ".2.jsonl").write_text("of an editor")


def hub(path):
    path.mkdir()
    for split in ("train", "test"):
        parquet.write_table(table(BARE), path / f"{split}-00000-of-00001.parquet")


FILES = {
    "data.json": lambda path, records: path.write_bytes(b"\xef\xbb\xbf" + text(records)),
    "data.json.gz": lambda path, records: path.write_bytes(gzip.compress(text(records))),
    "data.json.zst": lambda path, records: path.write_bytes(zstd(text(records))),
    "data.jsonl": lambda path, records: path.write_bytes(lines(records)),
    "data.jsonl.gz": lambda path, records: path.write_bytes(b"".join(map(gzip.compress, halves(lines(records))))),
    "data.jsonl.zst": lambda path, records: path.write_bytes(zstd(lines(records))),
    "lines.json": lambda path, records: path.write_bytes(lines(records)),
    "packed.json": lambda path, records: path.write_bytes(gzip.compress(lines(records))),
    "plain.json.gz": lambda path, records: path.write_bytes(text(records)),
    "data.parquet": lambda path, records: parquet.write_table(table(records), path, row_group_size=7),
    "parquet.json": lambda path, records: parquet.write_table(table(records), path),
    "json.parquet": lambda path, records: path.write_bytes(text(records)),
    "file.arrow": arrow(pa.ipc.new_file),
    "stream.arrow": arrow(pa.ipc.new_stream),
    "folder": folder,
    "saved": lambda path, records: datasets.Dataset(table(records)).save_to_disk(path, num_shards=2),
}  # fmt: skip


def samples(path, tokenizer, tmp_path, **options):
    """Return {id: sample} of a file, which must be the same from memory, from the cache and from a stream."""
    encoding, image_folder = replace(ENCODING, **options), str(tmp_path)
    plain = list(load_file(path, tokenizer, encoding, SourceOptions("none", image_folder=image_folder)))
    cache = str(tmp_path / "cache")
    cached = list(load_file(path, tokenizer, encoding, SourceOptions(cache, image_folder=image_folder)))
    streamed = stream(
        parse_sources([str(path)]), tokenizer, encoding, StreamOptions(epochs=1, image_folder=image_folder)
    )
    by_id = {sample["id"]: sample for sample in plain}
    assert cached == plain and {sample["id"]: sample for sample in streamed} == by_id
    return by_id


def error_of(function, *args, **options):
    with pytest.raises(DataError) as caught:
        function(*args, **options)
    return str(caught.value)


def error_everywhere(path, words, tokenizer):
    """Assert that a file is rejected with `words` in memory, in the check and in a stream."""
    assert words in error_of(read, path)
    check = check_check.Check()
    (problem,) = [check.file(str(path)).examples["the file"]]
    assert words in problem[0]
    if "no records" in words:  # a stream finds that later, as it reads
        return

    def streamed():
        list(stream(parse_sources([str(path)]), tokenizer, ENCODING, ONE_EPOCH))

    assert words in error_of(streamed)
