"""Hints on paths that look right: each names the cause and the cure."""

import json
import unicodedata

import pytest

from qwen_vl.data.build import stream
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.conversations import read
from qwen_vl.data.mixing import parse_sources
from qwen_vl.data.sources.streaming import StreamOptions
from qwen_vl.data.validation import DataError

Q, A = {"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}
RECORD = {"id": "a", "conversations": [Q, A]}


def error_of(path, **options):
    with pytest.raises((DataError, OSError)) as caught:
        read(path, **options)
    return str(caught.value)


NFC, NFD = unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")


@pytest.mark.parametrize(
    "file, reference, words",
    [
        ("sub/a.png", "sub\\a.png", ["write / in paths, not \\; 'sub/a.png' is there"]),
        ("x.png", "sub\\b.png", ["write / in paths, not \\"]),
        ("x.png", "C:\\data\\a.png", ["a path of Windows"]),
        ("a.png", "a.png\u200b", ['"a.png\\u200b"', "U+200B zero width space at character 5", "'a.png' is there"]),
        ("a.png", "\ufeffa.png", ["U+FEFF zero width no-break space at character 0", "'a.png' is there"]),
        ("a b.png", "a\u00a0b.png", ["U+00A0 no-break space at character 1", "'a b.png' is there"]),
        ("a.png", "\u202aa.png\u202c", ["U+202A left-to-right embedding", "U+202C", "'a.png' is there"]),
        ("a.png", " a.png\n", ["U+000A a control character", "'a.png' is there"]),
        ("a.png", " a.png", ["begins or ends with a space", "'a.png' is there"]),
        ("a.png", "'a.png'", ["in quotes", "'a.png' is there"]),
        ("sub/a.png", "sub\\a.png\u200b", ["U+200B", "write / in paths", "'sub/a.png' is there"]),
        (
            NFC,
            NFD,
            ["decomposed characters such as U+0301 combining acute accent", 'normalize("NFC", path)', "is there"],
        ),
        (NFD, NFC, ["the file's own name is decomposed", 'normalize("NFD", path)', "is there"]),
        ("a.png", "A.PNG", ["other capital letters", "'a.png' is there"]),
        ("a b.png", "a%20b.png", ["% and ~ stand for themselves", "'a b.png' is there"]),
        ("a.png", "c.png", []),
    ],
)
def test_paths_that_look_right(file, reference, words, write, tmp_path, tokenizer):
    """Name the cause for an image, in memory and in a stream."""
    (tmp_path / "sub").mkdir()
    (tmp_path / file).write_bytes(b"x")
    turn = {"from": "user", "value": f"<img>{reference}</img>?"}
    path = write(json.dumps({"conversations": [turn, A]}).encode(), "data.jsonl")
    with pytest.raises(DataError) as caught:
        list(stream(parse_sources([str(path)]), tokenizer, EncodeOptions(), StreamOptions(epochs=1)))
    for message in (error_of(path), str(caught.value)):
        assert "no such file" in message and all(word in message for word in words), message
        assert words or message.split("no such file")[1].startswith("\n")


@pytest.mark.parametrize(
    "path, words",
    [
        ("sub\\data.json", "write / in paths, not \\; "),
        ("sub/data.json\u200b", "U+200B zero width space at character "),
    ],
)
def test_a_data_file_that_looks_right(path, words, write, tmp_path):
    write([RECORD], "sub/data.json")
    message = error_of(f"{tmp_path}/{path}")
    assert words in message and f"'{tmp_path}/sub/data.json' is there" in message, message
