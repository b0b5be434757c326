"""Answers on disk: what is appended, what survives a kill, what is refused."""

import errno
import json

import pytest

from qwen_vl.cli.run import message
from qwen_vl.evaluation import store
from qwen_vl.evaluation.records import Answer

IDS = ["a", "b", "c"]
KEYS = {id: f"key-{id}" for id in IDS}


def answer(id, key=None, **fields):
    return Answer(id, key or f"key-{id}", **({"text": f"said {id} 好\n\u2028"} | fields))


def lines(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_answers_of_several_processes_become_one_file_in_record_order(tmp_path):
    with store.AnswerFile(tmp_path, 0) as first, store.AnswerFile(tmp_path, 1) as second:
        first.append([answer("c")])
        assert len(lines(tmp_path / "answers.rank-0000.jsonl")) == 1  # on disk before the next batch
        second.append([answer("b", losses=(1.5, 0.25), choice=1, text=None, finish="rank"), answer("a")])
    merged = store.merge(tmp_path, IDS, KEYS)
    assert list(merged) == IDS and merged["b"].losses == (1.5, 0.25) and merged["a"] == answer("a")
    assert [json.loads(line)["id"] for line in lines(tmp_path / "answers.jsonl")] == IDS
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]
    before = (tmp_path / "answers.jsonl").read_bytes()
    store.merge(tmp_path, IDS, KEYS)
    assert (tmp_path / "answers.jsonl").read_bytes() == before and "好".encode() in before


@pytest.mark.parametrize("tail", ['{"id": "b", "ke', store.to_line(answer("b")), "\0\0\0\0\n", "{}\n"])
def test_a_torn_last_line_is_dropped(tmp_path, tail):
    """Also one that only lacks its newline, and one that a power cut filled with zeros."""
    path = tmp_path / "answers.rank-0001.jsonl"
    path.write_text(store.to_line(answer("a")) + "\n" + tail, encoding="utf-8")
    assert list(store.merge(tmp_path, IDS, KEYS)) == ["a"]
    assert len(lines(tmp_path / "answers.jsonl")) == 1


def test_a_line_that_is_torn_in_the_middle_is_named(tmp_path):
    path = tmp_path / "answers.rank-0000.jsonl"
    path.write_text('{"id": "a", "ke\n' + store.to_line(answer("b")) + "\n")
    with pytest.raises(ValueError, match=r"rank-0000\.jsonl:1: a broken line .*delete that line"):
        store.merge(tmp_path, IDS, KEYS)


def test_stale_answers_errors_and_second_lines_do_not_count(tmp_path):
    with store.AnswerFile(tmp_path, 0) as file:
        file.append([answer("a"), answer("a", text="again"), answer("b", key="old"), answer("c", error="no image")])
    assert store.merge(tmp_path, IDS)["c"].error == "no image"  # for the counts of a run
    assert store.merge(tmp_path, IDS, KEYS) == {"a": answer("a")}  # before the next one


def test_a_record_of_another_benchmark_is_named(tmp_path):
    with store.AnswerFile(tmp_path, 0) as file:
        file.append([answer("a"), answer("x")])
    with pytest.raises(ValueError, match=r"rank-0000\.jsonl:2: answers a record 'x'.* move it away"):
        store.merge(tmp_path, IDS, KEYS)
    assert len(lines(tmp_path / "answers.rank-0000.jsonl")) == 2  # nothing is lost by looking


def test_a_kill_between_merging_and_deleting_leaves_no_second_line(tmp_path):
    with store.AnswerFile(tmp_path, 0) as file:
        file.append([answer("a")])
    parts = (tmp_path / "answers.rank-0000.jsonl").read_bytes()
    store.merge(tmp_path, IDS, KEYS)
    (tmp_path / "answers.rank-0000.jsonl").write_bytes(parts)
    store.merge(tmp_path, IDS, KEYS)
    assert len(lines(tmp_path / "answers.jsonl")) == 1


def test_a_full_disk_names_the_file_of_answers(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qwen_vl.evaluation.store.os.fsync", full)
    with store.AnswerFile(tmp_path, 0) as file, pytest.raises(OSError) as caught:
        file.append([])
    expected = (
        f"{tmp_path / 'answers.rank-0000.jsonl'}: no space left on device; free some space, or use another folder"
    )
    assert message(caught.value) == expected
