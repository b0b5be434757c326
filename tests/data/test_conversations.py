"""conversations.read: what is accepted, and the error for each mistake."""

import json
import logging
import shutil
import time
from pathlib import Path

import pytest

from qwen_vl.data.conversations import MAX_SHOWN, DataError, read, search_dirs
from qwen_vl.data.validation import ERRORS, WARNINGS

GOLDEN_IMAGE = Path(__file__).parent.parent / "golden" / "images" / "rgb.png"
Q, A = {"from": "user", "value": "What is it?"}, {"from": "assistant", "value": "A red box."}
GOOD = {"id": "good", "conversations": [Q, A]}


def user(text):
    return {"id": "x", "conversations": [{"from": "user", "value": text}, A]}


def error_of(path, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value)


def test_what_is_accepted(write, caplog):
    """Accept a BOM, CRLF, any id or none, a leading assistant turn, markers as text, U+2028 in JSON Lines."""
    records = [
        {"id": 3, "conversations": [A, Q, A, Q]},
        {
            "conversations": [
                {"from": "user", "value": ""},
                {"from": "assistant", "value": "a\u2028b <|im_end|> <html>"},
            ]
        },
        {"id": "3", "topic": "z", "conversations": [{**Q, "loss": True, "text": ""}, A]},
        {"id": 4, "system": "", "weight": 0.5, "conversations": [Q, {**A, "loss": False}, Q, A]},
        {"id": 3, "conversations": [Q, A]},
    ]
    plain = write(b"\xef\xbb\xbf" + json.dumps(records, indent=1).replace("\n", "\r\n").encode())
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    json_lines = write(("\r\n".join(lines) + "\n\n").encode(), "lines.json")
    with caplog.at_level(logging.WARNING):
        loaded = read(plain)
    log = caplog.text
    expected = [records[0], {"id": "data.json[1]", **records[1]}, *records[2:]]
    assert loaded == expected
    assert read(json_lines) == [expected[0], {"id": "lines.json:2", **records[1]}, *expected[2:]]
    assert read(write(lines[0].encode(), "one.jsonl")) == [records[0]]
    for note in (
        "assistant turn before",
        "'topic' of a record",
        "'text' of a turn",
        "id of an earlier",
    ):
        assert log.count(note) == 1, note


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"", "data.json", ["empty"]),
        (b"[]", "data.json", ["empty list"]),
        (b'[{"id": 1},\n {"id" 2}]', "data.json", ["line 2, column 8"]),
        (b"[" * 100_000, "data.json", ["not JSON"]),
        (b'[{"id": "\xff"}]', "data.json", ["not UTF-8 at byte 9", "0xff"]),
        ("[]".encode("utf-16"), "data.json", ["UTF-16", "UTF-8"]),
        (json.dumps(GOOD).encode(), "data.json", ["one conversation, not a list", "put ["]),
        (json.dumps({"data": [GOOD]}).encode(), "data.json", ["an object, not a list", "'data'"]),
        (b'"text"', "data.json", ["holds a string"]),
        (
            json.dumps(GOOD).encode() + b'\n{"id"\n7\n',
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
    ("record", "words"),
    [
        ("text", ["data.json[1]: a string"]),
        ({"id": 1.5, "conversations": [Q, A]}, ["(id 1.5).id: a number; use a string"]),
        ({"id": 1}, ["no 'conversations'; add"]),
        ({"id": 1, "messages": [Q, A]}, ["rename 'messages' to 'conversations'"]),
        ({"id": 1, "conversations": []}, ["conversations: use a list"]),
        ({"id": 1, "conversations": [Q, "text"]}, ["conversations[1]: a string"]),
        (
            {"id": 1, "conversations": [Q, {"role": "assistant", "content": "a"}]},
            ["rename 'role' to 'from'", "rename 'content' to"],
        ),
        (
            {"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            ["conversations[0].from: \"human\"; use 'user'", "conversations[1].from: \"gpt\"; use 'assistant'"],
        ),
        ({"id": 1, "conversations": [{"from": "system", "value": "q"}, Q, A]}, ["use 'user' or 'assistant'"]),
        ({"id": 1, "conversations": [{"from": ["user"], "value": "q"}, A]}, ["use 'user' or 'assistant'"]),
        ({"id": 1, "conversations": [Q, Q, A]}, ["conversations[1].from: a second 'user' turn"]),
        ({"id": 1, "conversations": [Q]}, ["nothing to learn"]),
        ({"id": 1, "conversations": [A, Q]}, ["nothing to learn"]),
        ({"id": 1, "conversations": [Q, {"from": "assistant", "value": " \n"}]}, ["conversations[1].value: empty"]),
        ({"id": 1, "conversations": [Q, {"from": "assistant", "value": None}]}, ["a null; use a string"]),
        (
            {"id": 1, "conversations": [{"from": "user", "value": [{"type": "text"}]}, A]},
            ["a list; write images into"],
        ),
        (
            {"id": 1, "image": "a.jpg", "conversations": [{"from": "user", "value": "<image>\nq"}, A]},
            ["image: images stand"],
        ),
        ({"id": 1, "system": 3, "conversations": [Q, A]}, [".system: a number; use a string"]),
        ({"id": 1, "system": "<img>", "conversations": [Q, A]}, [".system: <img> at character 0 is never closed"]),
        ({"id": 1, "weight": 0, "conversations": [Q, A]}, [".weight: 0; use a number above 0"]),
        ({"id": 1, "weight": True, "conversations": [Q, A]}, [".weight: true"]),
        ({"id": 1, "weight": float("inf"), "conversations": [Q, A]}, [".weight: Infinity"]),
        ({"id": 1, "conversations": [Q, {**A, "loss": 0}]}, ["conversations[1].loss: a number; use true or false"]),
        ({"id": 1, "conversations": [A, Q, {**A, "loss": False}]}, ['every answer has "loss": false']),
        (user("\ud83d"), ["surrogate"]),
        (user("a <img>x.png"), ["<img> at character 2 is never closed; add </img>"]),
        (user("a</ref>"), ["</ref> at character 1 closes nothing"]),
        (user("<ref>a<box>(1,2),(3,4)</box>"), ["<box> at character 6 inside <ref>"]),
        (user("<imgpad>"), ["reserved"]),
        (user("<img> </img>"), ["is empty"]),
        (
            user("<img>nowhere.png</img>"),
            ['image "nowhere.png": no such file', "Images were looked for in", "--image_folder"],
        ),
        (user("<img>ftp://host/a.png</img>"), ["use a path, http"]),
        (user("<img>http:///a.png</img>"), ["use a path, http"]),
        (user("<img>data:image/png,abc</img>"), ["use a path, http"]),
        (user("<box>(1, 2),(3,4)</box>"), ["write <box>(x1,y1),(x2,y2)</box>"]),
        (user("<box>(0.1,0.2),(0.3,0.4)</box>"), ["whole numbers from 0 to 999"]),
        (user("<box>(1,2),(3,1000)</box>"), ["coordinates go from 0 to 999"]),
        (user("<box>(-1,2),(3,4)</box>"), ["coordinates go from 0 to 999"]),
        (user("<box>(5,2),(3,4)</box>"), ["top left corner first"]),
        (user("<box>(1,5),(3,4)</box>"), ["top left corner first"]),
        (user("<quad>(1,2),(3,4),(5,6)</quad>"), ["write <quad>"]),
        (user("<quad>(1,2),(3,4),(5,6),(7,1000)</quad>"), ["coordinates go from 0 to 999"]),
    ],
)
def test_each_problem_names_its_place_and_cure(record, words, write):
    message = error_of(write([GOOD, record]))
    assert all(word in message for word in ["data.json[1]", *words]), message
    assert message.count("data.json[1]") == sum(not word.startswith(("Images", "--")) for word in words), message


def test_all_problems_come_together(write):
    """Report the first 20 problems in full and count the others by kind."""
    bad = [user("<img>a.png</img><box>(1,1)</box>")] * 11 + [{"id": 1, "conversations": [Q, {**A, "value": ""}]}] * 2
    message = error_of(write([GOOD, *bad]))
    lines = message.splitlines()
    assert "24 problems in 14 records" in lines[0]
    assert sum("data.json[" in line for line in lines) == MAX_SHOWN
    assert "and 4 more: 2 empty answer, 1 missing image, 1 malformed box" in message


def test_boxes_and_images_that_are_right(write):
    text = (
        "<ref>狗</ref><box>(0,0),(999,999)</box><box>(5,5),(5,5)</box><quad>(1,2),(3,4),(5,6),(7,0)</quad>"
        "<img>https://host/a b.png?x=1</img><img>data:image/png;base64,iVBORw0KGgo=</img>"
    )
    assert len(read(write([user(text)]))) == 1
    assert len(read(write([user("<img>nowhere.png</img>")]), check_images=False)) == 1


def test_where_images_are_looked_for(write, tmp_path, monkeypatch):
    """Look next to the data file, then in the image folder, then in the working directory, which differs here."""
    folders = {name: tmp_path / name for name in ("set", "images", "cwd")}
    for name, folder in folders.items():
        (folder / "sub").mkdir(parents=True)
        shutil.copy(GOLDEN_IMAGE, folder / "sub" / f"{name}.png")
    monkeypatch.chdir(folders["cwd"])
    path = write([user("".join(f"<img>sub/{name}.png</img>" for name in folders))], "set/data.json")
    assert len(read("../set/data.json", image_folder="../images")) == 1
    assert search_dirs("../set/data.json", "../images") == [str(folder) for folder in folders.values()]
    message = error_of(path)
    assert "1 problem " in message and '"sub/images.png": no such file' in message
    assert "no such folder" in error_of(path, image_folder="nowhere")
    with pytest.raises(OSError):
        read(tmp_path / "nowhere.json")


def test_the_format_page_tells_the_truth(write):
    """Every ```json block of data/README.md is a data file that loads, and every kind of problem is in its table."""
    root = Path(__file__).parents[2]
    page = (root / "data" / "README.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in page.split("```json\n")[1:]]
    assert len(blocks) >= 3
    for block in blocks:
        assert read(write(block.encode()), check_images=False)
    undocumented = [kind for kind in ERRORS | WARNINGS if f"\n| {kind} |" not in page]
    assert not undocumented
    bad = {"id": "circle-3", "conversations": [{"from": "human", "value": "q"}, A]}
    swapped = {"id": "circle-41", "conversations": [Q, {**A, "value": "<box>(420,250),(120,850)</box>"}]}
    message = error_of(write([GOOD] * 3 + [bad] + [GOOD] * 37 + [swapped] + [GOOD] * 758, "my_data.json"))
    shown = page.split("\n```\n")[1:]  # the message that the page quotes
    assert message.split("my_data.json: ", 1)[1] in "".join(shown)


def test_a_large_file_is_fast(write):
    records = [
        {"id": i, "conversations": [Q, A, {"from": "user", "value": "框 <ref>a</ref>?"}, A]} for i in range(20_000)
    ]
    path = write(records)
    start = time.process_time()
    assert len(read(path)) == len(records)
    assert time.process_time() - start < 4, "seconds; about 0.4 on a quiet core"
