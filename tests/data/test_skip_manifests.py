"""Skip manifests: exactly their records are skipped, and what does not fit is an error."""

import json
import logging

import pytest
from helpers.checks import check, record

from qwen_vl.data.conversations import DataError, read


def test_a_manifest_skips_exactly_its_records_and_says_so(write, tmp_path, caplog):
    path = write([record("a"), record("b"), record("b", "other"), record("c")])
    assert check(path, "--fix", tmp_path / "same.json") == (0, "")
    assert (tmp_path / "same.json").read_bytes() == path.read_bytes()
    manifest = json.loads((tmp_path / "same.skip.json").read_text())
    assert manifest["skip"] == []

    def ids(*skip, **changes):
        text = json.dumps({**manifest, "skip": list(skip), **changes})
        return [each["id"] for each in read(path, skip_manifest=write(text.encode(), "m.json"))]

    assert ids() == ["a", "b", "b", "c"]
    with caplog.at_level(logging.WARNING):
        assert ids({"id": "b"}) == ["a", "c"]
    assert (
        f'{path}: skipped 2 of 4 records, which {tmp_path / "m.json"} names: [1] (id "b"), [2] (id "b")' in caplog.text
    )
    assert ids({"id": "b", "record": "[2]"}, {"record": "[0]"}) == ["b", "c"]
    for skip, words in [
        ([{"id": "x"}, {"id": "a"}], 'not in .*: id "x";'),
        ([{"id": "a", "record": "[1]"}], r'not in .*: \[1\] \(id "a"\)'),
        ([{"record": "[4]"}], r"not in .*: \[4\];"),
        ([{"record": f"[{i}]"} for i in range(4)], "leaves no record"),
        ([{"reasons": []}], r"skip\[0\].*place, its id"),
        ([{"id": 1.5}], r"skip\[0\]"),
    ]:
        with pytest.raises(DataError, match=words):
            ids(*skip)
    with pytest.raises(DataError, match=r"made for .data\.json. with sha256 .*make it again with .qwen-vl data check"):
        ids(sha256="0" * 64)
    for content in (b"{", b"[]", b'{"sha256": "x"}'):
        with pytest.raises(DataError, match=r"skip manifest .*m\.json"):
            read(path, skip_manifest=write(content, "m.json"))
