"""What is told about a file that is nearly right: each message names the cause and the cure."""

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
GOOD = json.dumps([RECORD], indent=1)


def error_of(path, **options):
    with pytest.raises((DataError, OSError)) as caught:
        read(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        (GOOD.replace('"Ho"', '"Ho",'), "not JSON at line 12, column 4 (a comma before } in line 11; remove it)"),
        (GOOD.replace('"Hi"', '"Hi",').replace('"Ho"', '"Ho",'), "in line 7, and more in line 11; remove them"),
        (GOOD[:-1] + ",\n]", "a comma before ] in line 15; remove it"),
        (GOOD.replace('"', "'"), "single quotes, as Python prints them"),
        (GOOD.replace('"Ho"', "None"), "None is Python; write null"),
        (GOOD.replace('"Hi"', "True"), "True is Python; write true"),
        (GOOD.replace('"Hi"', "“Hi”"), '“ is a typographic quote; write "'),
        (GOOD.replace('"Hi"', '"Hi" // greeting'), "a comment, which JSON does not have"),
        ("// all\n" + GOOD, "a comment, which JSON does not have"),
        ("# all\n" + GOOD, "a comment"),
        (GOOD.replace("Hi", "H\ni"), "a line break (U+000A) inside a string; write \\n for it"),
        (GOOD.replace("Hi", "H\ti"), "a tab (U+0009) inside a string; write \\t"),
        (GOOD.replace("Hi", "C:\\pics\\a.png"), "a backslash inside a string; write / in paths"),
        (GOOD.replace("Hi", 'say "Hi"'), 'a quote inside the string before is not written as \\"'),
        (GOOD.replace("},\n", "}\n", 1), "a comma is missing before it"),
        (GOOD[:-30], "was the file cut short?"),
        (GOOD + GOOD, "a second value after the first; put all records into one list"),
        (GOOD.strip("[]") + ",\n" + GOOD.strip("[]"), "records without a list around them; put [ before"),
        (GOOD.replace("[", "[\u00a0", 1), "a character (U+00A0), which is invisible; remove it"),
        (GOOD.replace(",", ",\ufeff", 1), "a byte order mark (U+FEFF), which is invisible"),
    ],
)
def test_what_makes_a_text_no_json(content, words, write):
    assert words in error_of(write(content.encode())), error_of(write(content.encode()))


def test_a_line_of_json_lines_is_told_the_same_without_a_line_number(write):
    line = json.dumps(RECORD)
    path = write(f"{line}\n{line[:-1]},}}\n{line},\n".encode(), "d.jsonl")
    message = error_of(path)
    assert f"d.jsonl:2: not JSON at column {len(line) + 1} (a comma before }}; remove it)" in message
    assert "d.jsonl:3: not JSON" in message and "a comma after the record; remove it" in message


ROWS = {"id": {"0": "a", "1": "b"}, "conversations": {"0": [Q, A], "1": [Q, A]}}


@pytest.mark.parametrize(
    "content, words",
    [
        (ROWS, "columns of pandas (its to_json as it is by default)"),
        ({"0": RECORD, "1": RECORD}, "orient='index'"),
        ({"columns": ["id"], "index": [0], "data": [["a"]]}, "a table of pandas"),
        ({"schema": {}, "data": [RECORD]}, "a table of pandas"),
        ([["a", [Q, A]]], "a list of lists"),
        ({"id": ["a"], "conversations": [[Q, A]]}, "columns, such as to_dict()"),
    ],
)
def test_tables_of_pandas(content, words, write):
    message = error_of(write(content))
    assert words in message and 'to_json(.., orient="records")' in message
    lines = error_of(write(json.dumps(ROWS).encode(), "d.jsonl"))
    assert ".conversations: an object; use a list" in lines and 'to_json(.., orient="records")' in lines
    coco = error_of(write({"images": [], "annotations": [], "categories": []}))
    assert "data convert --from coco" in coco


@pytest.mark.parametrize(
    "role, words",
    [
        (
            "system",
            "use 'user' or 'assistant'; a system message is no turn: put its text under the record's key 'system'",
        ),
        ("System", "key 'system'"),
        ("User", "use 'user'; this has capital letters"),
        ("user\u200b", "use 'user'; this has U+200B zero width space at character 4"),
        ("Human", "use 'user'"),
        ("function", "tools cannot be trained on"),
        ("teacher", "use 'user' or 'assistant'"),
    ],
)
def test_roles(role, words, write):
    assert words in error_of(write([{"conversations": [{**Q, "from": role}, Q, A]}]))


def test_keys_with_what_is_not_seen(write):
    path = write(
        [
            {"\ufeffconversations": [Q, A]},
            {"Conversations": [Q, A]},
            {"conversations": [{"from": "user", "value ": "q"}, A]},
        ]
    )
    message = error_of(path)
    assert "no 'conversations'; there is '\\ufeffconversations', with U+FEFF zero width no-break space at" in message
    assert "there is 'Conversations', with capital letters" in message and "there is 'value ', with capital" in message


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
    """Of an image, in memory and in a stream, and of the data file itself."""
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
