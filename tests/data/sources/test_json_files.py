"""JSON and JSON Lines: the error for a file that is nearly right names the cause and the cure."""

import json
import sys

import pytest

from qwen_vl.data.conversations import read
from qwen_vl.data.validation import DataError

Q, A = {"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}
RECORD = {"id": "a", "conversations": [Q, A]}
GOOD = json.dumps([RECORD], indent=1)
COMMA_IS_NAMED = sys.version_info >= (3, 13)  # Python's reader stops at a comma too many, earlier ones after it
AT = "11, column 18" if COMMA_IS_NAMED else "12, column 4"


def error_of(path, **options):
    with pytest.raises((DataError, OSError)) as caught:
        read(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"", "data.json", ["empty"]),
        (b"[]", "data.json", ["empty list"]),
        (b'[{"id": 1},\n {"id" 2}]', "data.json", ["line 2, column 8"]),
        (b"[" * 100_000, "data.json", ["not JSON"]),
        (b'[{"id": "\xff"}]', "data.json", ["not UTF-8 at byte 9", "0xff"]),
        ("[]".encode("utf-16"), "data.json", ["UTF-16", "UTF-8"]),
        (json.dumps(RECORD).encode(), "data.json", ["one conversation, not a list", "put ["]),
        (json.dumps({"data": [RECORD]}).encode(), "data.json", ["an object, not a list", "'data'"]),
        (b'"text"', "data.json", ["holds a string"]),
        (
            json.dumps(RECORD).encode() + b'\n{"id"\n7\n',
            "data.jsonl",
            ["data.jsonl:2: not JSON", "data.jsonl:3: a number"],
        ),
        (b'{"id": 1,\n "conversations" []}', "data.json", ["line 2, column 18"]),
    ],
)
def test_a_file_of_another_shape(content, name, words, write):
    message = error_of(write(content, name))
    assert all(word in message for word in [name, *words]), message


@pytest.mark.parametrize(
    "content, words",
    [
        (GOOD.replace('"Ho"', '"Ho",'), f"not JSON at line {AT} (a comma before }} in line 11; remove it)"),
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
def test_a_text_that_is_not_json_names_the_mistake(content, words, write):
    assert words in error_of(write(content.encode())), error_of(write(content.encode()))


def test_a_line_of_json_lines_has_the_same_message_without_a_line_number(write):
    line = json.dumps(RECORD)
    path = write(f"{line}\n{line[:-1]},}}\n{line},\n".encode(), "d.jsonl")
    message = error_of(path)
    assert f"d.jsonl:2: not JSON at column {len(line) + (not COMMA_IS_NAMED)} (a comma before }}; remove it)" in message
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
