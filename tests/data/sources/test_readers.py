"""The readers in every verb: the same samples from JSON, Parquet, Arrow and saved data sets, packed or not."""

import io
import json
import pickle
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from helpers.data_files import (
    BARE,
    ENCODING,
    FILES,
    FULL,
    ONE_EPOCH,
    A,
    Q,
    error_everywhere,
    error_of,
    hub,
    lines,
    samples,
    table,
)
from PIL import Image
from pyarrow import parquet

from qwen_vl.cli import data as cli_data
from qwen_vl.data import skip_manifests
from qwen_vl.data.build import SourceOptions, load_file, stream
from qwen_vl.data.conversations import read
from qwen_vl.data.mixing import parse_sources
from qwen_vl.data.sources import readers, tokenized_cache

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


def without_a_shard(path):
    FILES["saved"](path, BARE)
    (path / "data-00001-of-00002.arrow").unlink()


BROKEN = {
    "none.parquet": (lambda path: path.write_bytes(b""), "not Parquet"),
    "rows.parquet": (lambda path: parquet.write_table(table(BARE)[:0], path), "no records"),
    "cut.parquet": (cut_table("data.parquet", 0, -20), "damaged or cut short Parquet"),
    "flipped.parquet": (flipped, "from row 0 on: damaged or cut short Parquet"),
    "cut.arrow": (cut_table("stream.arrow", 0, -300), "damaged or cut short Arrow"),
    "cut2.arrow": (cut_table("file.arrow", 0, -300), "damaged or cut short Arrow"),
    "text.parquet": (lambda path: path.write_text("a,b\n1,2\n"), "not Parquet"),
    "other.parquet": (lambda path: parquet.write_table(pa.table({"text": ["a"]}), path), "no column 'conversations'"),
    "twice.parquet": (
        lambda path: parquet.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["id", "id"]), path),
        "two columns 'id'",
    ),
    "splits": (splits, "holds the splits test, train; name one of them"),
    "hub": (hub, "holds the splits test, train; name one of them"),
    "lost": (without_a_shard, "data-00001-of-00002.arrow of the saved data set missing"),
    "nothing": (lambda path: path.mkdir(), "no file named *.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_says_why(name, tokenizer, tmp_path):
    """Raise the same error in memory, in the check and in a stream, never a traceback of a library."""
    make, words = BROKEN[name]
    make(tmp_path / name)
    error_everywhere(tmp_path / name, words, tokenizer)


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


def test_a_stream_of_arrow_without_its_end_is_suspicious(tmp_path, caplog):
    FILES["stream.arrow"](tmp_path / "d.arrow", BARE)
    (tmp_path / "d.arrow").write_bytes((tmp_path / "d.arrow").read_bytes()[:-8])
    assert len(read(tmp_path / "d.arrow")) == 40 and "no end mark" in caplog.text


def test_a_worker_that_is_spawned_maps_the_file_itself(tmp_path):
    FILES["file.arrow"](tmp_path / "d.arrow", BARE)
    (file,) = readers.open_files(tmp_path / "d.arrow")
    again = pickle.loads(pickle.dumps(file))
    assert [record for block in again.blocks(3) for _, record in again.read(block)] == BARE
