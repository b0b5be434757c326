"""`qwen-vl data check`: its findings, its report and repairs, and the effect of a skip manifest on training."""

import pytest
from helpers.checks import A, Q, check, record, report_of
from helpers.terminals import on_terminal

from qwen_vl.data.check import check as check_check


@pytest.mark.parametrize("workers", [1, 2])
def test_every_problem_is_reported_with_its_place(workers, write, images, tmp_path, capsys, monkeypatch):
    """Report problems of records, of images and duplicates, with one process and with several."""
    monkeypatch.setattr(check_check, "RECORDS_A_CHUNK", 3)
    monkeypatch.setattr(check_check, "IMAGES_A_CHUNK", 2)
    bad = ("cut.jpg", "text.png", "empty.png", "bomb.png")
    records = [
        record("good", "<img>good.png</img>"),
        record("twice", "<img>cut.jpg</img> <img>good.png</img> <img>cut.jpg</img>"),
        *[record(name, f"<img>{name}</img>") for name in bad],
        {"id": "human", "conversations": [{**Q, "from": "human"}, {**A, "value": "<box>(5,2),(3,4)</box>"}]},
        record("gone", "<img>gone.png</img>"),
        record("turned", "<img>turned.jpg</img><img>flat.png</img>"),
        {"conversations": record("good", "<img>good.png</img>")["conversations"]},
        {**record("good", "other"), "source": "x"},
    ]
    path = write(records)
    code, found = report_of(path, "--image_folder", images, "--workers", workers, folder=tmp_path)
    keys = [(entry["record"], entry["id"], entry["field"], entry["kind"], entry["level"]) for entry in found]
    value, error, warning = "conversations[0].value", "error", "warning"
    assert code == 1 and sorted(keys, key=str) == sorted([
        ("[1]", "twice", value, "broken image", error),
        *[(f"[{i}]", name, value, "broken image", error) for i, name in enumerate(bad, start=2)],
        ("[6]", "human", "conversations[0].from", "wrong role", error),
        ("[6]", "human", "conversations[1].value", "swapped corners", error),
        ("[7]", "gone", value, "missing image", error),
        ("[8]", "turned", value, "rotated image", warning),
        ("[8]", "turned", value, "odd image", warning),
        ("[9]", None, "conversations", "same conversation", warning),
        ("[10]", "good", "", "ignored key", warning),
        ("[10]", "good", "id", "same id", warning),
    ], key=str)  # fmt: skip
    assert all(entry["file"] == str(path) and entry["message"] for entry in found)
    messages = {entry["id"]: entry["message"] for entry in found}
    for name, words in zip(bad, ("cut short", "not an image", "empty", "too large"), strict=True):
        assert words in messages[name], messages[name]
    assert messages[None] == "the same turns as data.json[0]"
    shown = capsys.readouterr().out
    assert "5  broken image" in shown and 'data.json[6] (id "human").conversations[0].from: "human"; use' in shown
    assert f"images were looked for in {tmp_path}, {images}, " in shown
    assert "lengths: left out; give --model" in shown and shown.count("cut.jpg") == 3


def test_a_file_that_cannot_be_read_does_not_hide_the_others(write, tmp_path, capsys):
    good, broken = write([record("a")], "good.json"), write(b'[{"id" 1}]', "broken.json")
    code, found = report_of(broken, tmp_path / "gone.json", good, folder=tmp_path)
    assert code == 1 and [(entry["kind"], entry["record"]) for entry in found] == [("the file", "")] * 2
    assert "line 1, column 8" in found[0]["message"] and "no such file" in found[1]["message"].lower()
    assert "broken.json: not JSON at line 1" in capsys.readouterr().out
    assert "only leaves out records" in check(broken, "--fix", tmp_path / "out.json")[1]
    hopeless = write([{"id": 1}], "hopeless.json")
    assert "would leave nothing" in check(hopeless, "--fix", tmp_path / "out.json")[1]
    assert not (tmp_path / "out.json").exists()
    assert "no such folder" in check(good, "--image_folder", tmp_path / "gone")[1]


def test_text_that_no_terminal_shows(write, tmp_path):
    """Write half a surrogate pair into the report and the summary without an error."""
    path = write(b'[{"id": "\\ud83d", "conversations": [{"from": "user", "value": "<box>\\ud83d</box>"}]}]')
    code, found = report_of(path, folder=tmp_path)
    kinds = [entry["kind"] for entry in found]
    assert code == 1 and kinds == ["broken text", "malformed box", "nothing to learn"]
    assert found[0]["id"] == "\ud83d"


def test_a_terminal_shows_the_progress(write, images):
    records = [record(str(n), f"<img>{images / 'good.png'}</img>{n}") for n in range(600)]
    with on_terminal() as screen:
        assert check(write(records), "--workers", "2") == (0, "")
    stages = ["data.json: records", "data.json: images"]
    drawn = [text for text in screen.text.split("\r\x1b[2K") if text.startswith("data.json: ")]
    assert list(dict.fromkeys(text.partition(" ━")[0].rstrip() for text in drawn)) == stages
    assert " 1/1 " in drawn[-1] and screen.text.endswith("\x1b[2K")  # erased, as the summary follows
