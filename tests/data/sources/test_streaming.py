"""Streams: every record once in an epoch over all readers, from every kind of file; errors name their line."""

import json
import random
from collections import Counter
from itertools import islice

import pyarrow as pa
import pytest
from pyarrow import parquet
from torch.utils.data import DataLoader

from qwen_vl.data import chatml, packing, skip_manifests
from qwen_vl.data.chatml import EncodeOptions, OverlengthError, encode
from qwen_vl.data.mixing import Source
from qwen_vl.data.sources import readers, streaming
from qwen_vl.data.sources.streaming import StreamingDataset, StreamOptions, report
from qwen_vl.data.validation import DataError


def talk(name, question="q", answer="a", **more):
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]
    return {"id": name, "conversations": turns, **more}


RECORDS = [talk(f"r{index}", "q" * random.Random(index).randint(1, 200)) for index in range(300)]


@pytest.fixture
def stream(tokenizer):
    """Return a function that makes a stream of one epoch over paths or Sources."""

    def make(*sources, skips=None, **options):
        sources = [source if isinstance(source, Source) else Source(str(source), 1, str(source)) for source in sources]
        encoding = EncodeOptions(**{key: options.pop(key) for key in ("max_length", "overlength") if key in options})
        streaming = StreamOptions(**{"epochs": 1, "buffer_size": 20} | options)
        return StreamingDataset(sources, tokenizer, encoding, streaming, skips=skips)

    return make


@pytest.fixture
def lines(tmp_path):
    """Return a function that writes records as JSON Lines."""

    def write(records=RECORDS, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return path

    return write


def write_parquet(path, records):
    parquet.write_table(pa.Table.from_pylist(records), path, row_group_size=70)


def write_arrow(path, records, new=pa.ipc.new_stream):
    table = pa.Table.from_pylist(records)
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=70)


FILES = {
    "data.jsonl": lambda path, records: path.write_text("\n\n".join(map(json.dumps, records))),
    "bom.jsonl": lambda path, records: path.write_text(
        "\ufeff" + "".join(json.dumps(record) + "\r\n" for record in records), encoding="utf-8"
    ),
    "data.parquet": write_parquet,
    "stream.arrow": write_arrow,
    "file.arrow": lambda path, records: write_arrow(path, records, pa.ipc.new_file),
}


def names(dataset, workers=0, batch_size=4):
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=list)
    return [sample["id"] for batch in loader for sample in batch]


def error_of(dataset):
    with pytest.raises(DataError) as caught:
        list(dataset)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_every_record_once_over_ranks_and_workers(name, stream, tmp_path, tokenizer):
    FILES[name](tmp_path / name, RECORDS)
    seen = []
    for rank in range(2):
        mine = names(stream(tmp_path / name, rank=rank, world_size=2, seed=3), workers=2)
        assert mine == names(stream(tmp_path / name, rank=rank, world_size=2, seed=3), workers=2)
        assert len(mine) > 60  # a fair share
        seen += mine
    assert sorted(seen) == sorted(record["id"] for record in RECORDS) != seen
    alone = list(stream(tmp_path / name, epochs=2))
    assert sorted(sample["id"] for sample in alone) == sorted(2 * seen)
    order = [sample["id"] for sample in alone[:300]]
    assert order != [sample["id"] for sample in alone[300:]] and order != names(stream(tmp_path / name, seed=1))
    sample, record = alone[0], RECORDS[int(alone[0]["id"][1:])]
    assert sample == {"id": record["id"], **encode(record, tokenizer)}


@pytest.mark.parametrize("block", [1, 7, 100, 10_000])
def test_blocks_of_any_size_cover_the_lines(block, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", block)
    monkeypatch.setattr(readers, "PIECE", 5)
    path = tmp_path / "x.jsonl"
    texts = ["1", "", '"é\u2028"', "[]", "  ", "22", '"\\n"', "3"]
    path.write_text("\n".join(texts), encoding="utf-8")
    (file,) = readers.open_files(path)
    found = [(place(), record) for block in reversed(file.blocks(1)) for place, record in file.read(block)]
    assert dict(found) == {":1": 1, ":3": "é\u2028", ":4": [], ":6": 22, ":7": "\n", ":8": 3} and len(found) == 6


def global_order(stream, path, *, world_size, workers, batch_size, num=450, **options):
    """Return the first `num` ids of an endless stream in the order of training, joined from those of each rank."""
    per_rank = -(-num // (world_size * batch_size))
    ranks = []
    for rank in range(world_size):
        placed = {"rank": rank, "world_size": world_size, "batch_size": batch_size}
        dataset = stream(path, epochs=None, **placed, **options)
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=list)
        ranks.append([[sample["id"] for sample in batch] for batch in islice(loader, per_rank)])
    return [name for batches in zip(*ranks, strict=True) for batch in batches for name in batch][:num]


def test_the_order_does_not_depend_on_ranks_and_workers_and_resumes_in_the_middle(stream, lines):
    """Yield every record once in an epoch, in one order for any ranks and workers, also after a resume."""
    whole = global_order(stream, lines(), world_size=1, workers=0, batch_size=1, num=1000)
    for start in (0, 300, 600):
        assert sorted(whole[start : start + 300]) == sorted(record["id"] for record in RECORDS)
    assert whole[:300] != whole[300:600]
    for world_size, workers, batch_size in [(1, 2, 3), (3, 0, 2), (2, 1, 4)]:
        placed = {"world_size": world_size, "workers": workers, "batch_size": batch_size}
        assert global_order(stream, lines(), **placed) == whole[:450]
        assert global_order(stream, lines(), **placed, num_seen=313) == whole[313:763]


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_what_is_optional_may_be_missing(name, stream, tmp_path, golden_images, tokenizer):
    records = [
        talk("a", f"<img>{golden_images[0]}</img>", system="Be brief.", weight=2.0),
        {
            "conversations": [
                *talk(0)["conversations"],
                {"from": "user", "value": "?"},
                {"from": "assistant", "value": "!", "loss": True},
            ]
        },
    ]
    FILES[name](tmp_path / name, records)
    samples = {sample["id"]: sample for sample in stream(tmp_path / name)}
    second = f"{name}:3" if name == "data.jsonl" else f"{name}[1]"
    assert samples == {
        "a": {"id": "a", **encode(records[0], tokenizer)},
        second: {"id": second, **encode(records[1], tokenizer)},
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id" 2}', [":203: not JSON"]),
        (b'{"id": "\xff"}', [":203: not UTF-8 (0xff at byte 8"]),
        (json.dumps(talk("x", "<box>(1,2)</box>")), [':203 (id "x").conversations[0].value: box', "skip manifest"]),
        (json.dumps(talk("x", "<img>no.png</img>")), [':203 (id "x")', '"no.png": no such file']),
        ("[]", [":203: a list; use an object"]),
    ],
)
def test_a_bad_record_names_file_and_line(line, words, stream, lines):
    path = lines()
    content = path.read_bytes().split(b"\n")
    content[202] = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"\n".join(content))
    message = error_of(stream(path))
    assert all(word in message for word in ["data.jsonl", *words]), message
    if line[:1] == "{" and line != '{"id" 2}':
        manifest = path.with_name("skip.json")
        manifest.write_text(json.dumps({"sha256": skip_manifests.sha256(path), "skip": [{"record": ":203"}]}))
        skips = {str(path): skip_manifests.SkipManifest(manifest, path)}
        assert sorted(names(stream(path, skips=skips), workers=2)) == sorted({r["id"] for r in RECORDS} - {"r202"})


def test_the_error_comes_through_a_worker(stream, lines):
    path = lines([*RECORDS[:40], []])
    loader = iter(DataLoader(stream(path), num_workers=1, collate_fn=list))
    with pytest.raises(DataError, match=r"data\.jsonl:41: a list"):
        list(loader)
    loader._shutdown_workers()  # now, not when the exception is forgotten


def test_what_cannot_be_streamed(stream, write, tmp_path):
    for content, name, words in (
        (b"[{}]", "a.jsonl", "a JSON list cannot be streamed"),
        (b"\xef\xbb\xbf \n", "b.jsonl", "empty"),
        (b"x", "c.csv", "cannot be streamed; give JSON Lines"),
        (b"x", "d.parquet", "not Parquet"),
        (b"x", "e.arrow", "not Arrow"),
    ):
        with pytest.raises(DataError, match=words):
            stream(write(content, name))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"no file named \*.jsonl"):
        stream(tmp_path / "folder")
    with pytest.raises(OSError):
        stream(tmp_path / "none.jsonl")
    few = write(json.dumps(talk("only", "word " * 100)).encode(), "few.jsonl")
    with pytest.raises(DataError, match="no record that fits"):
        next(iter(stream(few, epochs=None, max_length=50)))


def test_the_limit(stream, lines, tmp_path, caplog):
    records = [
        *RECORDS[:20],
        talk("huge", "word " * 500),
        {"id": "long", "conversations": RECORDS[0]["conversations"] * 9},
    ]
    path, noted = lines(records), tmp_path / "overlength.jsonl"
    kept = names(stream(path, max_length=250, epochs=2, overlength_path=noted), workers=2)
    assert Counter(kept) == {name: 2 for name in [*(record["id"] for record in RECORDS[:20]), "long"]}
    assert report(noted) == {"trimmed": 1, "dropped": 1} and "1 trimmed, 1 dropped" in caplog.text
    assert report(tmp_path / "none") == {"trimmed": 0, "dropped": 0}
    assert {json.loads(line)["id"] for line in noted.read_text().splitlines()} == {"huge", "long"}
    with pytest.raises(OverlengthError, match=r"data.jsonl: .*more than 250; shorten"):
        names(stream(path, max_length=250, overlength="error"))


def test_mixes(stream, lines, tmp_path):
    (tmp_path / "folder").mkdir()
    write_parquet(tmp_path / "folder" / "1.parquet", RECORDS[:50])
    lines(RECORDS[50:100], "folder/2.jsonl")
    few = lines([talk(f"few{index}") for index in range(100)], "few.jsonl")
    sources = [Source(str(tmp_path / "folder"), 1, "folder"), Source(str(few), 2.5, "few")]
    counts = Counter(sample["id"] for sample in stream(*sources))
    assert {counts[record["id"]] for record in RECORDS[:100]} == {1}
    assert {counts[f"few{index}"] for index in range(100)} == {2, 3} and 330 < sum(counts.values()) < 370
    drawn, again = (list(islice(stream(*sources, mix="interleave", epochs=None), 1000)) for _ in range(2))
    assert 660 < sum(sample["source"] for sample in drawn) < 770 and drawn == again  # 5 of 7


def test_a_resumed_stream_tokenizes_again_and_looks_for_no_image(stream, lines, monkeypatch):
    """Look only for images of samples that are still to come, as docs/data.md and docs/resume.md say."""
    path = lines([talk(f"r{index}", f"<img>{index}.png</img>") for index in range(60)])
    tokenized, looked_for = [], []
    monkeypatch.setattr(streaming, "fit", lambda *args: tokenized.append(1) or chatml.fit(*args))
    monkeypatch.setattr(streaming, "_is_there", lambda dirs, image: looked_for.append(image) or True)
    rest = list(stream(path, num_seen=50))
    assert len(rest) == 10 and len(tokenized) == 60
    assert sorted(looked_for) == sorted(image for sample in rest for image in sample["images"])
    assert [sample["id"] for sample in rest] == [sample["id"] for sample in stream(path)][50:]


def test_rows_of_a_stream(stream, lines, monkeypatch):
    monkeypatch.setattr(packing, "STREAM_WINDOW", 100)
    options = {"packing": packing.PackOptions(400), "max_length": 400}
    rows = list(stream(lines(), **options))
    assert sorted(sample["id"] for row in rows for sample in row) == sorted(record["id"] for record in RECORDS)
    filled = [sum(len(sample["input_ids"]) for sample in row) for row in rows]
    assert max(filled) <= 400 and sum(filled) / len(filled) > 380
    assert list(stream(lines(), **options, num_seen=6)) == rows[6:]
