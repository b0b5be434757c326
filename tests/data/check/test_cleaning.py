"""Cleaned files: without the bad records, and otherwise the same."""

import json

import pytest
from helpers.checks import Q, check, record, report_of

from qwen_vl.data.conversations import read


@pytest.mark.parametrize("name", ["data.json", "lines.json", "data.jsonl"])
def test_a_repaired_file_is_good_and_otherwise_the_same(name, write, tmp_path, capsys):
    """Keep the other bytes: order, spaces, escapes, repeated keys. The manifest has the same effect on training."""
    texts = [json.dumps(record(i), indent=None if name != "data.json" else 3) for i in range(6)]
    texts[0] = texts[0].replace('"What', '"\\u0057hat').replace("{", '{ "n": 1.50, "n": 2,', 1)
    texts[1] = texts[1].replace("user", "human")
    texts[3] = json.dumps({"conversations": [Q]})
    texts[5] = json.dumps(record(4, "<img></img>"))  # the id of a good one
    head, comma, tail = ("\ufeff[\n", " ,\n", "\n] \n") if name == "data.json" else ("", "\r\n", "\n")
    path = write((head + comma.join(texts) + tail).encode(), name)
    code, message = check(path, "--fix", tmp_path / "clean.json")
    assert code == 1 and message.startswith("3 errors in 3 of 6 records")
    cleaned = (tmp_path / "clean.json").read_bytes().decode()
    good = [texts[0], texts[2], texts[4]]
    assert cleaned == head + comma.join(good) + (tail if name == "data.json" else comma)
    assert check(tmp_path / "clean.json") == (0, "")
    manifest = json.loads((tmp_path / "clean.skip.json").read_text(encoding="utf-8"))
    places = [":2", ":4", ":6"] if "lines" in name or name.endswith("l") else ["[1]", "[3]", "[5]"]
    assert manifest["file"] == name
    assert [(entry["record"], entry["id"]) for entry in manifest["skip"]] == [*zip(places, [1, None, 4], strict=True)]
    assert manifest["skip"][0]["reasons"] == ["wrong role: conversations[0].from: \"human\"; use 'user'"]
    skipping = read(path, skip_manifest=tmp_path / "clean.skip.json")
    assert skipping == read(tmp_path / "clean.json") and [each["id"] for each in skipping] == [0, 2, 4]


def test_lines_that_are_not_json_are_skipped_too(write, tmp_path):
    path = write(b'{"id"\n\n' + json.dumps(record(1)).encode() + b"\n7\nxx", "data.jsonl")
    code, found = report_of(path, "--fix", tmp_path / "clean.jsonl", folder=tmp_path)
    assert code == 1 and [(entry["record"], entry["kind"]) for entry in found] == [
        (":1", "broken JSON"),
        (":4", "wrong type"),
        (":5", "broken JSON"),
    ]
    assert (tmp_path / "clean.jsonl").read_bytes() == b"\n" + json.dumps(record(1)).encode() + b"\n"
    assert [each["id"] for each in read(path, skip_manifest=tmp_path / "clean.skip.json")] == [1]
