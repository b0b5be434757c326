"""`qwen-vl data check`: its findings, its report and repairs, and the effect of a skip manifest on training."""

import base64
import io
import json
import logging
import shutil

import numpy as np
import pytest
from helpers.terminals import on_terminal
from PIL import Image

from qwen_vl.cli import data
from qwen_vl.data.chatml import IGNORE_INDEX, encode
from qwen_vl.data.check import check as check_check
from qwen_vl.data.check import inspect_record
from qwen_vl.data.conversations import DataError, read
from qwen_vl.data.process_map import process_map

Q, A = {"from": "user", "value": "What is it?"}, {"from": "assistant", "value": "A red box."}


def record(name, question="What is it?", answer="A red box."):
    return {"id": name, "conversations": [{**Q, "value": question}, {**A, "value": f"{answer} {name}"}]}


@pytest.fixture
def vocab_dir(published_vocab, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(published_vocab, folder / "qwen.tiktoken")
    return folder


@pytest.fixture
def images(tmp_path, golden_images):
    """Return a folder of images: good.png, and one for each problem that an image can have."""
    folder = tmp_path / "pics"
    folder.mkdir()
    shutil.copy(golden_images[0], folder / "good.png")
    jpeg = io.BytesIO()
    noise = Image.effect_noise((64, 48), 90).convert("RGB")
    noise.save(jpeg, "JPEG")
    (folder / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(folder / "turned.jpg", exif=turned)
    Image.new("RGB", (300, 20)).save(folder / "flat.png")
    return folder


def check(*argv):
    """Return (exit code, error) of `qwen-vl data check argv`."""
    try:
        data.main(["check", *map(str, argv)])
    except DataError as error:
        return 1, str(error)
    return 0, ""


def report_of(*argv, folder):
    """Return (exit code, the reported problems as dicts)."""
    code, _ = check(*argv, "--report", folder / "report.jsonl")
    return code, [json.loads(line) for line in (folder / "report.jsonl").read_text(encoding="utf-8").splitlines()]


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


def test_each_image_is_opened_once(write, images, tmp_path, monkeypatch, capsys):
    """Open an image once over records, turns and files, a data: URI once a file; none with `--images exist`."""
    opened = []
    really_open = inspect_record.read_image
    monkeypatch.setattr(inspect_record, "read_image", lambda name: opened.append(name) or really_open(name))
    uri = "data:image/png;base64," + base64.b64encode((images / "good.png").read_bytes()).decode()
    text = f"<img>good.png</img><img>turned.jpg</img><img>{uri}</img>"
    first = write([record("a", text), record("b", text)], "pics/a.json")
    second = write([record("c", text + "<img>flat.png</img>")], "pics/b.json")
    assert check(first, second, "--workers", 1) == (0, "")
    names = ["uri" if name == uri else name.rpartition("/")[2] for name in opened]
    assert sorted(names) == ["flat.png", "good.png", "turned.jpg", "uri", "uri"]
    assert "images: 10 in the texts, 4 different ones opened, 0 of them broken; from" in capsys.readouterr().out
    broken = write([record("d", "<img>data:image/png;base64,AAAA</img>")], "pics/c.json")
    assert check(broken)[0] == 1
    del opened[:]
    assert check(first, broken, "--pictures", "exist", "--workers", 1) == (0, "") and not opened


def test_gray_of_more_than_8_bits_is_a_warning(write, tmp_path):
    """Name each record and how its image is scaled. Color and 8-bit gray give no warning."""
    levels = np.arange(400).reshape(20, 20) % 256
    images = {
        "scan.png": (levels * 257).astype(np.uint16),
        "depth.tif": (levels * 1000).astype(np.int32),
        "float.tif": (levels / 255).astype(np.float32),
        "plain.png": levels.astype(np.uint8),
        "labels.tif": levels.astype(np.int32),
    }
    for name, values in images.items():
        Image.fromarray(values).save(tmp_path / name)
    path = write([record(name, f"<img>{name}</img>") for name in images])
    code, found = report_of(path, folder=tmp_path)
    assert code == 0 and {entry["kind"] for entry in found} == {"scaled image"}
    messages = {entry["id"]: entry["message"] for entry in found}
    assert list(messages) == ["scan.png", "depth.tif", "float.tif"]
    assert messages["scan.png"].endswith("scan.png: 16-bit gray: scaled to 8 bits")
    assert messages["depth.tif"].endswith("32-bit gray: 0 .. 255000 scaled to 8 bits")


def test_lengths_are_those_of_training(write, vocab_dir, tokenizer, tmp_path, capsys):
    """Count exact lengths without opening an image, and warn of samples that the limit would trim or drop."""
    long = {"id": "long", "conversations": [Q, A, Q, {**A, "value": "word " * 300}]}
    records = [record("a"), long, record("huge", "word " * 300), record("p", "<img>https://host/x.png</img>")]
    records.append({"id": "few", "system": "Be brief.", "conversations": [Q, {**A, "loss": False}, Q, A]})
    path = write(records)
    options = ("--model", vocab_dir, "--max_length", 290, "--pictures", "exist", "--loss_on", "answers")
    code, found = report_of(path, *options, folder=tmp_path)
    whole = [encode(each, tokenizer) for each in records]
    lengths = [len(sample["input_ids"]) for sample in whole]
    kept = len(encode(long, tokenizer, max_length=290)["input_ids"])
    assert code == 0 and [(entry["id"], entry["kind"]) for entry in found] == [
        ("long", "over length"),
        ("huge", "over length"),
    ]
    assert f"{lengths[1]} tokens" in found[0]["message"] and f"{kept} tokens stay" in found[0]["message"]
    assert f"{lengths[2]} tokens" in found[1]["message"] and "left out" in found[1]["message"]
    samples = [encode(each, tokenizer, max_length=290, loss_on="answers") for each in records if each["id"] != "huge"]
    learned = sum(label != IGNORE_INDEX for sample in samples for label in sample["labels"])
    shown = capsys.readouterr().out
    assert f"{sum(lengths):,}  {learned:,}".split() == shown.splitlines()[1].split()[-2:]
    assert f"longest {max(lengths)} at [{lengths.index(max(lengths))}] (id " in shown
    assert "; 2 over the limit of 290" in shown
    bins = [line.split()[3] for line in shown.splitlines() if " .. " in line]
    assert sum(map(int, bins)) == len(records) and shown.count("#") >= len(bins) - bins.count("0")


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


def test_lines_that_are_no_json_are_left_out_too(write, tmp_path):
    path = write(b'{"id"\n\n' + json.dumps(record(1)).encode() + b"\n7\nxx", "data.jsonl")
    code, found = report_of(path, "--fix", tmp_path / "clean.jsonl", folder=tmp_path)
    assert code == 1 and [(entry["record"], entry["kind"]) for entry in found] == [
        (":1", "broken JSON"),
        (":4", "wrong type"),
        (":5", "broken JSON"),
    ]
    assert (tmp_path / "clean.jsonl").read_bytes() == b"\n" + json.dumps(record(1)).encode() + b"\n"
    assert [each["id"] for each in read(path, skip_manifest=tmp_path / "clean.skip.json")] == [1]


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
    assert f'{path}: 2 of 4 records left out, as {tmp_path / "m.json"} says: [1] (id "b"), [2] (id "b")' in caplog.text
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


def test_a_terminal_shows_how_far_it_is(write, images):
    records = [record(str(n), f"<img>{images / 'good.png'}</img>{n}") for n in range(600)]
    with on_terminal() as screen:
        assert check(write(records), "--workers", "2") == (0, "")
    stages = ["data.json: records", "data.json: images"]
    drawn = [text for text in screen.text.split("\r\x1b[2K") if text.startswith("data.json: ")]
    assert list(dict.fromkeys(text.partition(" ━")[0].rstrip() for text in drawn)) == stages
    assert " 1/1 " in drawn[-1] and screen.text.endswith("\x1b[2K")  # erased, as the summary follows


@pytest.mark.parametrize(
    "argv",
    [
        ["{a}", "{b}", "--fix", "out.json"],
        ["{a}", "--fix", "{a}"],
        ["{a}", "--report", "{a}"],
        ["{a}", "--workers", "0"],
        ["{a}", "--imagefolder", "x"],
        [],
    ],
)
def test_wrong_arguments_exit_with_2(argv, write):
    paths = {"a": write([record("a")], "a.json"), "b": write([record("b")], "b.json")}
    before = paths["a"].read_bytes()
    with pytest.raises(SystemExit, match="2"):
        check(*[word.format(**paths) for word in argv])
    assert paths["a"].read_bytes() == before


def test_a_folder_without_vocabulary_is_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no qwen\.tiktoken"):
        check(write([record("a")]), "--model", tmp_path)


def _halve(numbers):
    if 13 in numbers:
        raise ValueError("13 is not even")
    return [number // 2 for number in numbers]


def test_process_map_keeps_the_order_and_takes_chunks_as_it_goes():
    taken = []

    def chunks():
        for number in range(100):
            taken.append(number)
            yield [2 * number]

    results = process_map(_halve, chunks(), workers=2)
    assert next(results) == [0] and len(taken) < 20
    results.close()
    assert list(process_map(_halve, ([2 * i] for i in range(50)), workers=2)) == [[i] for i in range(50)]
    with pytest.raises(ValueError, match="13 is not even"):
        list(process_map(_halve, ([i] for i in range(50)), workers=2))
