"""The tokenized cache: the same samples from disk, written again when anything changes, never incomplete."""

import json
import multiprocessing
import pickle
from dataclasses import replace

import pytest
from helpers.records import VARIED

from qwen_vl.data import conversations, skip_manifests
from qwen_vl.data.chatml import EncodeOptions, OverlengthError
from qwen_vl.data.dataset import ConversationDataset
from qwen_vl.data.sources import tokenized_cache
from qwen_vl.data.validation import DataError
from qwen_vl.model.tokenization_qwen import QWenTokenizer

ENCODING = EncodeOptions(max_length=600)


@pytest.fixture
def make(data, tokenizer, tmp_path, monkeypatch):
    """Return a function that opens the cache as training does; `make.tokenized` counts how often it was written."""

    def start(path=data, tokenizer=tokenizer, skip_manifest=None, **options):
        where = {"folder": tmp_path / "cache", "skip_manifest": skip_manifest}
        return tokenized_cache.cached(path, tokenizer, replace(ENCODING, **options), **where)

    monkeypatch.setattr(tokenized_cache, "usable_cores", lambda: 1)
    original, start.tokenized = tokenized_cache._encode, []
    monkeypatch.setattr(
        tokenized_cache, "_encode", lambda *args, **kw: start.tokenized.append(1) or original(*args, **kw)
    )
    return start


def entries(tmp_path):
    return [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_the_same_samples_as_without_it(make, data, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(tokenized_cache, "CHUNK", 2)
    plain = ConversationDataset(
        conversations.read(data), tokenizer, ENCODING, search_dirs=conversations.search_dirs(data)
    )
    first = make()
    for dataset in (first, make(), pickle.loads(pickle.dumps(first))):
        assert list(dataset) == list(plain) and dataset[-1] == plain[-1]
        assert (dataset.lengths, dataset.num_images) == (plain.lengths, plain.num_images)
        assert dataset.overlength == plain.overlength and dataset.is_weighted
        with pytest.raises(IndexError):
            dataset[len(plain)]
    assert [entry["action"] for entry in plain.overlength] == ["dropped", "trimmed"]
    assert len(make.tokenized) == 3 and "1 trimmed, 1 dropped" in caplog.text  # said on every start


def test_whatever_changes_makes_another_entry(make, data, tmp_path, published_vocab):
    make()
    for options in ({"max_length": 601}, {"loss_on": "answers"}, {"overlength": "drop"}, {"control_tokens": True}):
        make(**options)
    make(tokenizer=QWenTokenizer(published_vocab, image_span_tokens=16))
    small = tmp_path / "small.tiktoken"
    small.write_bytes(b"".join(published_vocab.read_bytes().splitlines(keepends=True)[:1000]))
    make(tokenizer=QWenTokenizer(small))
    data.write_text(json.dumps(VARIED[:2]))
    assert len(make()) == 2
    manifest = tmp_path / "skip.json"
    manifest.write_text(json.dumps({"sha256": skip_manifests.sha256(data), "skip": [{"id": 7}]}))
    assert [sample["id"] for sample in make(skip_manifest=manifest)] == ["a"]
    assert len(make.tokenized) == len(entries(tmp_path)) == 9
    assert [sample["id"] for sample in make(skip_manifest=manifest)] == ["a"]
    assert len(make.tokenized) == 9


@pytest.mark.parametrize("damage", ["flip", "cut", "lost", "info"])
def test_a_damaged_entry_is_made_again(make, tmp_path, damage, caplog):
    expected = list(make())
    (entry,) = entries(tmp_path)
    samples = entry / tokenized_cache.SAMPLES
    content = bytearray(samples.read_bytes())
    content[len(content) // 2] ^= 1
    {
        "flip": lambda: samples.write_bytes(content),
        "cut": lambda: samples.write_bytes(content[:1000]),
        "lost": samples.unlink,
        "info": lambda: (entry / tokenized_cache.INFO).write_text("{"),
    }[damage]()
    assert list(make()) == expected and "is damaged" in caplog.text
    caplog.clear()
    assert list(make()) == expected and "is damaged" not in caplog.text and len(make.tokenized) == 2


def test_an_interrupted_or_failed_start_leaves_nothing(make, tmp_path, monkeypatch):
    def interrupted(path):
        assert path.name == tokenized_cache.SAMPLES and path.exists()
        raise KeyboardInterrupt

    with pytest.raises(OverlengthError):
        make(overlength="error")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokenized_cache, "bytes_digest", interrupted)
        make()
    assert entries(tmp_path) == []
    assert len(make()) == 4


def test_a_missing_image_is_still_an_error(make, tmp_path):
    make()
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match=r"data.json\[0\] .*\"b.png\": no such file"):
        make()


def _start(path, vocab, folder, queue):
    made, original = [], tokenized_cache._make
    tokenized_cache._make = lambda *args: made.append(1) or original(*args)
    samples = tokenized_cache.cached(path, QWenTokenizer(vocab), ENCODING, folder=folder)
    queue.put((len(made), [sample["id"] for sample in samples]))


def test_one_of_several_processes_writes_it(data, published_vocab, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (data, published_vocab, tmp_path / "cache", queue)
    processes = [context.Process(target=_start, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    made, names = zip(*(queue.get(timeout=60) for _ in processes), strict=True)
    for process in processes:
        process.join()
    assert sum(made) == 1 and all(name == ["a", 7, "data.json[2]", "cut"] for name in names)
