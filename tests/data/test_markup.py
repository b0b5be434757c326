"""Markup of other formats: a warning, an error if all images are lost, and never the result of a conversion."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from qwen_vl.cli import data
from qwen_vl.data import markup
from qwen_vl.data.build import stream
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.check import check
from qwen_vl.data.conversations import read
from qwen_vl.data.convert.convert import convert
from qwen_vl.data.mixing import parse_sources
from qwen_vl.data.sources.streaming import StreamOptions
from qwen_vl.data.validation import DataError

EXAMPLES = Path(__file__).parents[2] / "data" / "examples" / "conversations.json"


def talk(question, answer="A red box.", **more):
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]
    return {"conversations": turns, **more}


OURS = talk("Picture 1: <img>a.png</img>\nWhat is it?")
PLAIN = [talk(f"What is {index}?") for index in range(5)]
# Of each: a turn in which it stands for an image, what a message calls it, and what --from reads it.
IMAGES = [
    ("<image>\nWhat is it?", "<image> (LLaVA", "llava"),
    ("What is it?\n<image>", "<image> (LLaVA", "llava"),
    ("Picture 1: <image>\nWhat is it?", "<image> (LLaVA", "llava"),
    ("Compare <image> with <image>, please.", "<image> (LLaVA", "llava"),
    ("<image>a.png</image>\nWhat is it?", "<image> (LLaVA", "llava"),
    ("<IMG>a.png</IMG>\nWhat is it?", "<IMG> (our tag, but not in small letters)", None),
    ("Look:\n<img src='a.png' alt=\"a\">\nWhat is it?", "<img src=..> (HTML)", None),
    ("What is it? <img src=a.png />", "<img src=..> (HTML)", None),
    ("Is <|vision_start|><|image_pad|><|vision_end|> red?", "<|vision_start|> (Qwen2-VL", "qwen2vl"),
    ("Is <|image_pad|> red?", "<|image_pad|> (Qwen2-VL", "qwen2vl"),
    ("<|image_1|>\nWhat is it?", "<|image|> (Phi-3", None),
    ("<ImageHere>What is it?", "<ImageHere> (MiniGPT-4", None),
    ("[IMG]What is it?", "[IMG] (Pixtral)", None),
    ("<start_of_image>What is it?", "<start_of_image> (Gemma 3)", None),
]
BOXES = [
    ("<|object_ref_start|>it<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", "<|object_ref_start|>", "qwen2vl"),
    ("at <|box_start|>(1,2),(3,4)<|box_end|>", "<|box_start|>", "qwen2vl"),
    ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "it"}]\n```', '"bbox_2d"', "qwen3vl"),
    ("<ref-object><bbox>", "<ref-object>", "swift"),
    ("in <bbox>", "<bbox>", "swift"),
    ("<loc0012><loc0034><loc0056><loc0078> it", "<loc0123>", None),
    ("<p>it</p> {<12><34><56><78>}", "{<1><2><3><4>}", None),
    ("it[[012,034,056,078]]", "[[012,345,678,910]]", None),
    ("<Box>(1,2),(3,4)</Box>", "<Box>", None),
]
# Text that is about markup, or has nothing to do with it.
TEXTS = [
    "What does `<image>` mean in LLaVA?",
    'And "<|image_pad|>", or ‘<bbox>’?',
    "Mend this:\n```html\n<img src='a.png'>\n```",
    "a < b, [[1, 2], [3, 4]], {<key>}, <p>text</p> and <html>",
    "Matrix [[1,2,3,4],[5,6,7,8]] of a [box] and an <imagine>",
]
# Mentions: a warning alone, however few records there are.
MENTIONS = [
    "What does the <image> token mean in LLaVA?",
    "How do I center <img src='a.png'> with CSS?",
    "Why is it not shown?\n<div>\n<img src='a.png'>\n</div>",
]


def log_of(caplog, function, *args, **options):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        function(*args, **options)
    return caplog.text


def error_of(function, *args, **options):
    with pytest.raises(DataError) as caught:
        function(*args, **options)
    return str(caught.value)


def lines(records):
    return "\n".join(map(json.dumps, records)).encode()


@pytest.mark.parametrize("text, name, form", IMAGES)
def test_a_file_whose_images_are_all_lost(text, name, form, write, tokenizer, caplog, capsys):
    """Raise an error in a run, a stream and the check; warn next to an image of ours, or in an answer."""
    path = write(lines([talk(text), *PLAIN[: not name.startswith(("<img src", "[IMG]"))]]), "data.jsonl")
    message = error_of(read, path)
    assert "all images are lost" in message and name in message and "<img>PATH</img>" in message
    assert (f"--from {form}" in message) is (form is not None)
    assert name in error_of(stream, parse_sources([str(path)]), tokenizer, EncodeOptions(), StreamOptions())
    error_of(data.main, ["check", str(path), "--workers", "1"])
    assert name in capsys.readouterr().out
    log = log_of(caplog, read, write([OURS, talk(text)], "mixed.json"), check_images=False)
    assert f"mixed.json: {name}" in log and (f"--from {form}" in log) is (form is not None)
    assert name in log_of(caplog, read, write([*PLAIN, talk("What is it?", text)], "answer.json"))


@pytest.mark.parametrize("text, name, form", BOXES)
def test_boxes_of_other_formats_are_warned_of(text, name, form, write, tokenizer, caplog, capsys):
    path = write(lines([OURS, talk("Where is it?", text)]), "data.jsonl")
    log = log_of(caplog, read, path, check_images=False)
    assert f"data.jsonl: {name} (" in log and "no box" in log and (f"--from {form}" in log) is (form is not None)
    assert name in log_of(caplog, stream, parse_sources([str(path)]), tokenizer, EncodeOptions(), StreamOptions())
    Image.new("RGB", (40, 30)).save(path.with_name("a.png"))
    data.main(["check", str(path), "--workers", "1"])
    assert "foreign markup" in (shown := capsys.readouterr().out) and name in shown and "no errors" in shown


@pytest.mark.parametrize("text", TEXTS)
def test_text_about_markup_is_text(text, write, caplog):
    assert not log_of(caplog, read, write([talk(text, text, system=text)]))


@pytest.mark.parametrize("text", MENTIONS)
def test_a_mention_is_no_error(text, write, caplog):
    assert "is plain text here" in log_of(caplog, read, write([talk(text)]))
    assert "(8 times), first at data.json[0]" in log_of(caplog, read, write([talk(text)] * 8))


def test_what_is_often_text_counts_by_its_share(write):
    """Count HTML, keys and marks within sentences as an error only if many records have them."""
    html, key, inline = (
        talk("<img src='a.png'> is what?"),
        talk("What is it?", image_path="a.png"),
        talk("Is <image> red?"),
    )
    for record in (html, key):
        assert len(read(write([record, *PLAIN]))) == 6
        assert "all images are lost" in error_of(read, write([record] * 5 + PLAIN))
    assert len(read(write([inline] * 9))) == 9
    assert "all images are lost" in error_of(read, write([inline] * 10))
    assert len(read(write([inline] * 10 + [OURS]), check_images=False)) == 11


def test_every_mark_has_what_its_messages_need():
    for mark in markup.MARKS:
        assert mark.trait in markup.TRAITS and mark.kind in ("image", "box", "video") and markup.advice(mark)
        assert mark.convert in (None, "llava", "qwen2vl", "qwen3vl", "swift")


def chat(question, answer="a", **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


HUMAN = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
THEIRS = [
    ({"image": "a.png", "conversations": HUMAN}, "llava"),
    ({"images": ["a.png"], "conversations": HUMAN}, "sharegpt"),
    ({"conversations": [{**HUMAN[0], "value": "q"}, HUMAN[1]]}, "llava"),
    (talk("<image>\nq", image="a.png"), "llava"),
    (chat([{"type": "text", "text": "q"}]), "openai"),
    ({"conversations": chat("q")["messages"]}, "openai"),
    (chat("<image>q", images=["a.png"]), "sharegpt"),
    (chat("<image>q", "<bbox>", images=["a.png"], objects={"ref": [], "bbox": [[1, 2, 30, 20]]}), "swift"),
    (chat("q", BOXES[0][0]), "qwen2vl"),
    (chat("q", BOXES[2][0]), "qwen3vl"),
]


@pytest.mark.parametrize("record, form", THEIRS)
def test_a_file_of_another_format_names_its_conversion(record, form, write, capsys):
    """Run the command of the message, and read its result without a problem."""
    path = write([record, {**record, "id": "second"}], "theirs.json")
    Image.new("RGB", (40, 30)).save(path.with_name("a.png"))
    command = f"`qwen-vl data convert {path} OUT.json --from {form}`"
    assert command in error_of(read, path)
    error_of(data.main, ["check", str(path), "--workers", "1"])
    assert command in capsys.readouterr().out
    out = path.with_name("out.json")
    convert(path, out, source_format=form)
    assert len(read(out)) == 2 and not markup.found(out.read_text())


# ---- conversions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, name, form", [*IMAGES[8:14], *BOXES])
def test_no_conversion_writes_markup_of_other_formats(text, name, form, write, tmp_path):
    """Find foreign markup in texts of every format. HTML and [IMG] are counted, and stay."""
    records = {
        "openai": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]},
        "llava": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": text}]},
        "refcoco": {"image": "a.png", "width": 9, "height": 9, "bbox": [1, 1, 5, 5], "caption": "x"},
    }
    for source, record in records.items():
        path = write([record], f"{source}.json")
        options = {"source_format": source, "check_images": False, "prompt": text + "{phrase}"}
        if name == "[IMG] (Pixtral)":
            result = convert(path, tmp_path / "out.json", **options)
            assert any("[IMG]" in note for note in result.notes)
            continue
        message = error_of(convert, path, tmp_path / "out.json", **options)
        assert "would stay as text" in message or "; write one" in message  # a placeholder that nothing is for
        assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "form, text",
    [
        ("llava", "a <image>"),
        ("sharegpt", "a <image>"),
        ("swift", "a <image>"),
        ("swift", "a <bbox>"),
        ("swift", "a <ref-object>"),
        ("qwen2vl", "a <|box_start|>"),
        ("qwen2vl", "a <|image_pad|>"),
        ("qwen3vl", 'a {"bbox_2d": 1}'),
    ],
)
def test_text_of_ours_does_not_become_markup_of_another_format(form, text, write, tmp_path):
    path = write([talk("q", text, system="s"), talk("q", system=text)], "ours.json")
    message = error_of(convert, path, tmp_path / "x.json", source_format="ours", target_format=form)
    assert "conversations[1].value: holds " in message and ".system: holds " in message


def test_the_check_counts_a_lost_file_as_unusable(write, tmp_path):
    path = write([talk("<image>\nq"), talk("q", "")])
    (found,) = [check.Check().file(str(path))]
    assert found.kinds["the file"] == 1 and "all images are lost" in found.unusable
    assert "only leaves out records" in error_of(data.main, ["check", str(path), "--fix", str(tmp_path / "x.json")])
