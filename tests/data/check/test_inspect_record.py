"""The inspection of records and images: each image once, gray of more than 8 bits, lengths."""

import base64

import numpy as np
from helpers.checks import A, Q, check, record, report_of
from PIL import Image

from qwen_vl.data.chatml import IGNORE_INDEX, encode
from qwen_vl.data.check import inspect_record


def test_each_image_is_opened_once(write, images, tmp_path, monkeypatch, capsys):
    """Open an image once over records, turns and files, a data: URI once a file; none with `--images exist`."""
    opened = []
    really_open = inspect_record.image_files.read
    monkeypatch.setattr(inspect_record.image_files, "read", lambda name: opened.append(name) or really_open(name))
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
