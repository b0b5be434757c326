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


def test_all_problems_come_together(write):
    """Report the first 20 problems in full and count the others by kind."""
    bad = [user("<img>a.png</img><box>(1,1)</box>")] * 11 + [{"id": 1, "conversations": [Q, {**A, "value": ""}]}] * 2
    message = error_of(write([GOOD, *bad]))
    lines = message.splitlines()
    assert "24 problems in 14 records" in lines[0]
    assert sum("data.json[" in line for line in lines) == MAX_SHOWN
    assert "and 4 more: 2 empty answer, 1 missing image, 1 malformed box" in message


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
    """Load every ```json block of docs/data.md, and find every kind of problem in its table."""
    root = Path(__file__).parents[2]
    page = (root / "docs" / "data.md").read_text(encoding="utf-8")
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
