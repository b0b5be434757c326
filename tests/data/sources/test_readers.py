"""The readers in every verb: the same samples from JSON, Parquet, Arrow and saved data sets, packed or not."""

import gzip
import io
import json
import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import pandas
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from qwen_vl.cli import data as cli_data
from qwen_vl.data import skip_manifests
from qwen_vl.data.build import SourceOptions, load, load_file, stream
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.check import check as check_check
from qwen_vl.data.conversations import read
from qwen_vl.data.mixing import parse_sources
from qwen_vl.data.sources import json_lists, readers, tokenized_cache
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


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")


@pytest.fixture
def hf_json(tmp_path):
    """Return a function that loads records as `datasets` loads a JSON file of them."""

    def load_json(records):
        (tmp_path / "for_hf.json").write_text(json.dumps(records))
        return datasets.load_dataset("json", data_files=str(tmp_path / "for_hf.json"), split="train",
                                     cache_dir=str(tmp_path / "hf"))  # fmt: skip

    return load_json


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


# ---- the same samples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_same_samples_from_every_kind_of_file(name, tokenizer, tmp_path, image):
    """Read from memory, cache and stream. The content tells the format if the name is wrong."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "expected.json").write_text(json.dumps(FULL + BARE))
    expected = samples(tmp_path / "x" / "expected.json", tokenizer, tmp_path)
    FILES[name](tmp_path / name, FULL + BARE)
    found = samples(tmp_path / name, tokenizer, tmp_path)
    assert found == expected and list(found) == list(expected)
    assert {sample["weight"] for sample in found.values()} == {0.5, 1, 2}


def test_a_pattern_and_a_mix_of_kinds(tokenizer, tmp_path, image):
    for name in ("data.jsonl.gz", "data.parquet"):
        FILES[name](tmp_path / name, FULL)
    sources = parse_sources([f"{tmp_path}/*.parquet:2", str(tmp_path / "data.jsonl.gz")])
    mixed = load(sources, tokenizer, ENCODING, SourceOptions(cache="none"))
    assert [sample["id"] for sample in mixed] == [*"abcabc", *"abc"]
    assert Path(mixed[2]["images"][0]).is_file()
    hub(tmp_path / "hub")
    assert read(f"{tmp_path}/hub/train*.parquet") == BARE and len(read(f"{tmp_path}/hub/*")) == 80


def test_what_datasets_writes_is_read_as_what_it_read(hf_json, tokenizer, tmp_path, image):
    """Read objects as JSON text, null for absent keys, and ids of two types, from each format that it writes."""
    records = [
        *FULL,
        {"id": 7, "topic": {"a": None}, "conversations": [Q, A]},
        {"id": 8, "topic": 3, "conversations": [Q, A]},
    ]
    (tmp_path / "ours.json").write_text(json.dumps(records))
    expected = samples(tmp_path / "ours.json", tokenizer, tmp_path)
    data = hf_json(records)
    assert "Json" in str(data.features)
    data.to_parquet(tmp_path / "d.parquet")
    data.to_json(tmp_path / "d.jsonl", force_ascii=False)
    data.to_json(tmp_path / "d.json", lines=False)
    data.save_to_disk(tmp_path / "disk")
    (tmp_path / "disk" / "cache-1.arrow").write_bytes(b"of map()")
    data.to_pandas().to_json(tmp_path / "pandas.jsonl", orient="records", lines=True)
    for name in ("d.parquet", "d.jsonl", "d.json", "disk", "pandas.jsonl"):
        assert samples(tmp_path / name, tokenizer, tmp_path) == expected, name


def test_gaps_of_pandas(tokenizer, tmp_path, caplog):
    """Read NaN and None as absent keys, and whole floats of a column with gaps as integers."""
    records = [
        {"id": 7, "weight": 2, "conversations": [Q, A]},
        {"system": "S", "conversations": [Q, {**A, "loss": None}]},
    ]
    frame = pandas.DataFrame(records)
    assert frame["id"].dtype == float
    frame.to_parquet(tmp_path / "p.parquet")
    frame.to_json(tmp_path / "p.json", orient="records")
    (tmp_path / "nan.json").write_text(json.dumps(frame.to_dict("records")))
    assert "NaN" in (tmp_path / "nan.json").read_text()
    with caplog.at_level(logging.WARNING):
        for name in ("p.parquet", "p.json", "nan.json"):
            first, second = read(tmp_path / name)
            assert first == records[0] and isinstance(first["id"], int)
            assert second == {"id": f"{name}[1]", "system": "S", "conversations": [Q, A]}
    assert not caplog.records


@pytest.mark.parametrize(
    "conversations",
    [
        [json.dumps([Q, A])],
        [[json.dumps(Q), json.dumps(A)]],
        [{"from": ["user", "assistant"], "value": [Q["value"], A["value"]], "loss": None}],
        pa.array([[list(Q.items()), list(A.items())]], pa.list_(pa.map_(pa.string(), pa.string()))),
        pa.array([[Q, A]], pa.large_list(pa.struct({"value": pa.string_view(), "from": pa.large_string()}))),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array([json.dumps([Q, A])])),
    ],
)
def test_columns_in_which_turns_may_stand(conversations, tmp_path):
    parquet.write_table(pa.table({"id": [1], "conversations": conversations}), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet") == [{"id": 1, "conversations": [Q, A]}]


def test_values_that_are_wrong_stay_wrong(tmp_path):
    """Report wrong values of a table as those of JSON, with file and row, and types that only tables have."""
    turns = [{"from": "user", "value": 3}, {"from": "assistant", "value": None}]
    columns = {"id": ["x"], "system": [b"S"], "weight": ["2"], "conversations": [turns]}
    parquet.write_table(pa.table(columns), tmp_path / "d.parquet")
    parquet.write_table(pa.table({"id": [1.5], "conversations": [str([Q, A])]}), tmp_path / "e.parquet")
    (tmp_path / "d.jsonl").write_text(json.dumps({"id": None, "system": None, "weight": "2", "conversations": turns}))
    message = error_of(read, tmp_path / "d.parquet")
    for words in (
        'd.parquet[0] (id "x").conversations[0].value: a number; use a string',
        ".conversations[1].value: a null; use a string",
        ".system: a value of type bytes; use a string",
        '.weight: "2"; use a number',
    ):
        assert words in message, message
    message = error_of(read, tmp_path / "e.parquet")
    assert "(id 1.5).id: a number" in message and "a list as Python prints it" in message
    message = error_of(read, tmp_path / "d.jsonl")
    assert "d.jsonl:1" in message and ".value: a number" in message and '.weight: "2"' in message
    assert ".system" not in message and ".id:" not in message


# ---- every verb -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.parquet", "stream.arrow", "data.jsonl.gz", "saved", "folder"])
def test_check_fix_and_skip(name, tokenizer, tmp_path, capsys):
    """Name a bad record by file and row. --fix removes it; the manifest skips it in memory and in a stream."""
    records = [*BARE[:2], {**BARE[2], "conversations": [Q, {**A, "value": ""}]}, *BARE[3:9]]
    path, report = tmp_path / name, tmp_path / "report.jsonl"
    FILES[name](path, records)
    clean = tmp_path / ("clean.parquet" if name != "data.jsonl.gz" else "clean.jsonl.zst")
    clean = tmp_path / "clean.jsonl" if name == "folder" else clean
    assert "1 error in 1 of 9" in error_of(
        cli_data.main, ["check", str(path), "--report", str(report), "--fix", str(clean), "--workers", "1"]
    )
    (found,) = map(json.loads, report.read_text().splitlines())
    place = {"data.jsonl.gz": ":3", "saved": "/data-00000-of-00002.arrow[2]", "folder": "/sub/3.parquet[0]"}.get(
        name, "[2]"
    )
    assert found["record"] == place and found["kind"] == "empty answer"
    assert f'{name}{place} (id "r2").conversations[1].value: empty' in capsys.readouterr().out
    kept = [record for record in records if record["id"] != "r2"]
    assert read(clean) == kept
    manifest = clean.with_suffix("").with_suffix(".skip.json")
    assert read(path, skip_manifest=manifest) == kept
    streamed = stream(parse_sources([str(path)]), tokenizer, ENCODING, ONE_EPOCH, skip_manifests=[manifest])
    assert sorted(sample["id"] for sample in streamed) == sorted(record["id"] for record in kept)
    unskipped = stream(parse_sources([str(path)]), tokenizer, ENCODING, ONE_EPOCH)
    message = error_of(list, unskipped)
    assert (
        f'{place[-3:] if name != "data.jsonl.gz" else place} (id "r2")' in message and f"data check {path}`" in message
    )


def test_convert_and_preview_read_tables(tokenizer, tmp_path, published_vocab, capsys):
    """Convert columns of LLaVA with image bytes as in `datasets`, and parts of OpenAI with null for absent keys."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "JPEG")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    columns = {"images": [[{"bytes": content.getvalue(), "path": "x.jpg"}]], "conversations": [turns], "system": [None]}
    parquet.write_table(pa.table(columns), tmp_path / "llava.parquet")
    parts = [
        {"type": "text", "text": "What?", "image_url": None},
        {"type": "image_url", "text": None, "image_url": {"url": "a.png"}},
    ]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{**parts[0], "text": "A dog."}]}]
    parquet.write_table(pa.table({"messages": [messages]}), tmp_path / "openai.parquet")
    out = tmp_path / "out.jsonl.gz"
    cli_data.main(["convert", str(tmp_path / "llava.parquet"), str(out), "--from", "llava"])
    (record,) = read(out)
    assert "<img>data:image/jpeg;base64," in record["conversations"][0]["value"] and set(record) == {
        "id",
        "conversations",
    }
    cli_data.main(["convert", str(tmp_path / "openai.parquet"), str(out), "--from", "openai", "--pictures", "any"])
    assert read(out, check_images=False)[0]["conversations"][0]["value"] == "What?\nPicture 1: <img>a.png</img>"
    with pytest.raises(SystemExit):
        cli_data.main(["convert", str(out), str(tmp_path / "x.parquet"), "--from", "ours", "--to", "llava"])
    shutil.copy(published_vocab, tmp_path / "qwen.tiktoken")
    FILES["data.parquet"](tmp_path / "d.parquet", BARE)
    cli_data.main(["preview", str(tmp_path / "d.parquet"), "--model", str(tmp_path), "--out", str(tmp_path / "p.html")])
    assert "r19" in (tmp_path / "p.html").read_text() and "20 of 40" in capsys.readouterr().out
    message = error_of(read, tmp_path / "openai.parquet")
    assert "no column 'conversations', only messages" in message and "data convert" in message


def test_a_changed_shard_makes_another_cache_and_refuses_the_manifest(tokenizer, tmp_path, monkeypatch):
    FILES["folder"](tmp_path / "folder", FULL[:2] + BARE)
    made, encode = [], tokenized_cache._encode
    monkeypatch.setattr(tokenized_cache, "_encode", lambda *args, **options: made.append(1) or encode(*args, **options))
    for _ in range(2):
        load_file(tmp_path / "folder", tokenizer, ENCODING, SourceOptions(cache=str(tmp_path / "cache")))
    assert len(made) == 1
    skip_manifests.write_manifest(tmp_path / "folder", tmp_path / "skip.json", {"/1.jsonl:1": ("a", ["x"])})
    (tmp_path / "folder" / "1.jsonl").write_bytes(lines(FULL[1:2]))
    load_file(tmp_path / "folder", tokenizer, ENCODING, SourceOptions(cache=str(tmp_path / "cache")))
    assert len(made) == 2
    assert "make it again" in error_of(read, tmp_path / "folder", skip_manifest=tmp_path / "skip.json")


# ---- what cannot be read --------------------------------------------------------------------------------------------


def packed(kind, cut):
    return lambda path: path.write_bytes(kind(text(BARE))[:cut])


def cut_table(name, start, stop):
    def write(path):
        FILES[name](path, BARE)
        path.write_bytes(path.read_bytes()[start:stop])

    return write


def flipped(path):
    FILES["data.parquet"](path, BARE)
    content = bytearray(path.read_bytes())
    content[30] ^= 255
    path.write_bytes(content)


def splits(path):
    data = datasets.Dataset.from_list(BARE)
    datasets.DatasetDict(train=data, test=data).save_to_disk(path)


def hub(path):
    path.mkdir()
    for split in ("train", "test"):
        parquet.write_table(table(BARE), path / f"{split}-00000-of-00001.parquet")


def without_a_shard(path):
    FILES["saved"](path, BARE)
    (path / "data-00001-of-00002.arrow").unlink()


BROKEN = {
    "cut.json.gz": (packed(gzip.compress, -9), "cut.json.gz: damaged or cut short gzip"),
    "cut.json.zst": (packed(zstd, -5), "cut.json.zst: damaged or cut short zstd"),
    "none.jsonl.gz": (lambda path: path.write_bytes(gzip.compress(b"")), "none.jsonl.gz: empty"),
    "none.parquet": (lambda path: path.write_bytes(b""), "not Parquet"),
    "rows.parquet": (lambda path: parquet.write_table(table(BARE)[:0], path), "no records"),
    "cut.parquet": (cut_table("data.parquet", 0, -20), "damaged or cut short Parquet"),
    "flipped.parquet": (flipped, "from row 0 on: damaged or cut short Parquet"),
    "cut.arrow": (cut_table("stream.arrow", 0, -300), "damaged or cut short Arrow"),
    "cut2.arrow": (cut_table("file.arrow", 0, -300), "damaged or cut short Arrow"),
    "text.parquet": (lambda path: path.write_text("a,b\n1,2\n"), "not Parquet"),
    "lfs.parquet": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "page.json": (lambda path: path.write_text("<!DOCTYPE html>\n<html>"), "a web page"),
    "data.json.bz2": (lambda path: path.write_bytes(b"BZh91AY"), "bunzip2"),
    "data.zip": (lambda path: path.write_bytes(b"PK\x03\x04"), "a zip archive"),
    "data.parquet.gz": (lambda path: path.write_bytes(gzip.compress(b"PAR1")), "Parquet inside gzip"),
    "other.parquet": (lambda path: parquet.write_table(pa.table({"text": ["a"]}), path), "no column 'conversations'"),
    "twice.parquet": (
        lambda path: parquet.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["id", "id"]), path),
        "two columns 'id'",
    ),
    "wide.json": (lambda path: path.write_bytes("[]".encode("utf-16")), "UTF-16; save it as UTF-8"),
    "splits": (splits, "holds the splits test, train; name one of them"),
    "hub": (hub, "holds the splits test, train; name one of them"),
    "lost": (without_a_shard, "data-00001-of-00002.arrow of the saved data set missing"),
    "nothing": (lambda path: path.mkdir(), "no file named *.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_says_why(name, tokenizer, tmp_path):
    """Raise the same error in memory, in the check and in a stream, never a traceback of a library."""
    make, words = BROKEN[name]
    path = tmp_path / name
    make(path)
    assert words in error_of(read, path)
    check = check_check.Check()
    (problem,) = [check.file(str(path)).examples["the file"]]
    assert words in problem[0]
    if name == "rows.parquet":
        return

    def streamed():
        list(stream(parse_sources([str(path)]), tokenizer, ENCODING, ONE_EPOCH))

    assert words in error_of(streamed)


def test_outputs_do_not_land_among_the_data(tmp_path, capsys):
    FILES["folder"](tmp_path / "folder", FULL[:2] + BARE)
    data, out = str(tmp_path / "folder"), str(tmp_path / "folder" / "sub" / "out.jsonl")
    for arguments in (
        ["check", data, "--report", out],
        ["check", data, "--fix", out],
        ["convert", data, out, "--from", "ours", "--to", "llava"],
    ):
        with pytest.raises(SystemExit):
            cli_data.main(arguments)
        assert "put it elsewhere" in capsys.readouterr().err and not Path(out).exists()
    (tmp_path / "d.csv").write_text("id,conversations\n1,x\n")
    assert "a table in text; write its rows as JSON Lines or Parquet" in error_of(read, tmp_path / "d.csv")
    assert f"write / in paths, not \\; '{data}' is there" in error_of(
        read, tmp_path / "d.csv", image_folder=f"{tmp_path}\\folder"
    )


def test_a_list_is_streamed_in_pieces(tmp_path, monkeypatch):
    """Read the same elements, or raise an error with the same line, for any size of the pieces."""
    values = [{"a": 'é\u2028\\"x'}, -1.5e-10, 12345, "]", [], {"b": [1, {"c": None}]}, True]
    for indent in (None, 2):
        text = json.dumps(values, indent=indent, ensure_ascii=False)
        for size in range(1, 20):
            monkeypatch.setattr(json_lists, "PIECE", size)
            path = tmp_path / "d.json"
            path.write_text("\ufeff" + text + " \n", encoding="utf-8")
            assert list(json_lists.elements(path)) == values
            broken = text.replace("12345,", "12345,,")
            path.write_text(broken, encoding="utf-8")
            line = broken[: broken.index(",,")].count("\n") + 1
            assert f"not JSON at line {line} (" in error_of(list, json_lists.elements(path))
            for more in ("]", "", "[]"):
                path.write_text(text[:-1] if not more else text + more, encoding="utf-8")
                assert "not JSON at line" in error_of(list, json_lists.elements(path))
    path.write_text("[ ]")
    assert "an empty list" in error_of(list, json_lists.elements(path))


def test_a_stream_of_arrow_without_its_end_is_suspicious(tmp_path, caplog):
    FILES["stream.arrow"](tmp_path / "d.arrow", BARE)
    (tmp_path / "d.arrow").write_bytes((tmp_path / "d.arrow").read_bytes()[:-8])
    assert len(read(tmp_path / "d.arrow")) == 40 and "no end mark" in caplog.text


def test_a_worker_that_is_spawned_maps_the_file_itself(tmp_path):
    FILES["file.arrow"](tmp_path / "d.arrow", BARE)
    (file,) = readers.open_files(tmp_path / "d.arrow")
    again = pickle.loads(pickle.dumps(file))
    assert [record for block in again.blocks(3) for _, record in again.read(block)] == BARE
