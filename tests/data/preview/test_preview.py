"""The preview: the page shows what is encoded, data cannot break its markup, boxes are drawn."""

import io
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from qwen_vl.cli import data as cli_data
from qwen_vl.data.boxes import numbers, segments
from qwen_vl.data.chatml import IGNORE_INDEX, EncodeOptions, encode
from qwen_vl.data.preview import html_page, png_page, preview
from qwen_vl.model.box_drawing_qwen import COLORS

GOLDEN_IMAGE = Path(__file__).parents[2] / "golden" / "images" / "photo.jpg"
HOSTILE = (
    '</span><script>alert("1")</script> <img src="http://evil.example/x.png"> &lt; \x00\x1b\x7f 好\n\n"\' <|im_end|>'
)
VOID = {"meta", "img", "br"}


def turns_of(*texts):
    return [{"from": ("user", "assistant")[index % 2], "value": text} for index, text in enumerate(texts)]


class Page(HTMLParser):
    """A parsed page with balanced tags: attributes, and the tokens of each sample as [(classes, title, text), ..]."""

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.attributes, self.samples, self.text = [], [], [], [], ""
        self.feed(content.decode())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        values = dict(attrs)
        if tag not in VOID:
            self.open.append((tag, values.get("class", "")))
        if tag == "section":
            self.samples.append([])
        if self.samples and tag == "span" and values["class"].split()[0] == "t":
            self.samples[-1].append((set(values["class"].split()), values["title"], ""))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        if self.samples and self.open and self.open[-1][1].split()[:1] == ["t"]:
            classes, title, text = self.samples[-1][-1]
            self.samples[-1][-1] = (classes, title, text + data)


@pytest.fixture
def data(write, tmp_path):
    """Return a file with markup in every text field, several images, one of them missing, boxes and a quad."""
    shutil.copy(GOLDEN_IMAGE, tmp_path / "photo.jpg")
    Image.new("RGB", (8, 4), "white").save(tmp_path / "tiny.png")
    question = f"Picture 1: <img>photo.jpg</img>\nPicture 2: <img>tiny.png</img>\n{HOSTILE.replace('<img', '<im')}"
    answer = (
        "<ref>a <b></ref><box>(250,250),(750,750)</box> Picture 1: <quad>(100,100),(900,100),(900,900),(100,900)</quad>"
    )
    return write(
        [
            {"id": "<script>7</script>", "conversations": turns_of(question, answer, "And?", "No."), "weight": 2},
            {"id": "gone", "system": "Kurz & knapp.", "conversations": turns_of("<img>gone&.png</img>?", "A b.")},
            {"id": 3, "conversations": turns_of("q " * 40, "a" * 90, "q", "a")},
        ]
    )


def test_every_token_of_the_page_is_what_is_encoded(data, make_checkpoint):
    """Compare ids, targets and the cut at each position. An image span is one chip with its count."""
    page = preview.preview(data, make_checkpoint(), encoding=EncodeOptions(90))
    parsed = Page(html_page.render(page))
    tokenizer = preview.load_tokenizer(make_checkpoint())
    span = tokenizer.image_span_tokens + 2
    assert [sample.status for sample in page.samples] == ["dropped", "whole", "dropped"]
    assert [sample.length for sample in page.samples][1] <= 90
    for record, shown in zip(preview.read(data, check_images=False), parsed.samples, strict=True):
        sample = encode(record, tokenizer)
        position = 0
        for classes, title, text in shown:
            index, label = sample["input_ids"][position], sample["labels"][position]
            assert ("cut" in classes) == (record["id"] != "gone")
            if "p" in classes:
                assert index == tokenizer.img_start_id and title.startswith(f"{span} positions, 0 targets")
                position += span
                continue
            assert title == f"id {index}" and ("y" in classes) == (label != IGNORE_INDEX)
            assert "\n" not in text or "\u21b5\n" in text
            position += 1
        assert position == len(sample["input_ids"])
    text = "".join(text for classes, _, text in parsed.samples[1] if "s" not in classes and "p" not in classes)
    assert text.replace("\u21b5\n", "\n") == "system\nKurz & knapp.\nuser\n?\nassistant\nA b.\n"


def test_what_is_cut_follows_the_policy_of_training(write, tokenizer):
    """Show the tokens of the kept turns first, then the cut ones, whose targets do not count."""
    record = {"id": "x", "conversations": turns_of("one", "two", "three", "four", "five")}
    whole, kept = encode(record, tokenizer), encode(record, tokenizer, max_length=30)
    sample = preview.look(record, tokenizer, EncodeOptions(30))
    assert (sample.status, sample.length, sample.kept_length) == ("trimmed", len(whole["input_ids"]), 23)
    assert [token.id for token in sample.tokens] == whole["input_ids"]
    assert [token.id for token in sample.tokens if token.kept] == kept["input_ids"]
    assert sample.num_targets == sum(label != IGNORE_INDEX for label in kept["labels"])
    assert html_page.badges(sample)[0][0] == f"23 of {sample.length} tokens"
    answers = preview.look(record, tokenizer, EncodeOptions(loss_on="answers"))
    learned = "".join(token.text for token in answers.tokens if token.num_targets)
    assert learned == "two<|im_end|>\nfour<|im_end|>\n" and answers.status == "whole"


def test_the_page_is_inert_and_needs_nothing_else(data, make_checkpoint):
    """Show markup in the data as text. Nothing is fetched and no script runs."""
    content = html_page.render(preview.preview(data, make_checkpoint()))
    parsed = Page(content)
    assert not {"script", "link", "iframe", "object", "form", "a"} & set(parsed.tags)
    for name, value in parsed.attributes:
        assert not name.startswith("on") and name != "href"
        if name == "src":
            assert value.startswith("data:image/")
    assert b"url(" not in content and b"@import" not in content and b"\x00" not in content and b"\x1b" not in content
    assert "<script>7</script>" in parsed.text and '</span><script>alert("1")' in parsed.text
    assert "\u2400\u241b\u2421" in parsed.text and "weight 2" in parsed.text
    assert "not opened1" in "".join(parsed.text.split("\n")) and "'gone&.png': no such file" in parsed.text
    assert parsed.tags.count("img") == 2  # and the missing one is an error in its place


def test_boxes_are_drawn_on_the_image_they_belong_to(data, make_checkpoint):
    """Enlarge a tiny image first, or the lines would cover it. The quad belongs to the last image named."""
    photo, tiny = preview.preview(data, make_checkpoint(), num=1).samples[0].images
    assert tiny.size == (320, 160)
    box, quad = ImageColor.getrgb(COLORS[0]), ImageColor.getrgb(COLORS[-1])
    assert tiny.getpixel((80, 100)) == box and tiny.getpixel((160, 120)) == box
    assert tiny.getpixel((160, 80)) == (255, 255, 255)
    assert photo.getpixel((photo.width // 2, photo.height // 10)) == quad
    assert box not in {color for _, color in photo.getcolors(2**20)}


def test_which_image_a_box_belongs_to():
    turns = turns_of(
        "Picture 1: <img>a</img>\nPicture 2: <img>b</img>\nCompare Picture 1 and Picture 9.",
        "<box>(0,0),(1,1)</box>",
        "图2？ <ref>x</ref>",
        "<box>(1,2),(3,4)</box> as in Picture 1: <quad>(0,0),(0,0),(0,0),(0,0)</quad>",
        "<img>c</img>",
        "<ref>y</ref><box>(5,6),(7,8)</box>",
    )
    found = [(piece.kind, piece.image) for pieces in segments(turns) for piece in pieces if piece.kind != "text"]
    assert found == [
        ("img", 0), ("img", 1), ("box", 0), ("ref", 1), ("box", 1), ("quad", 0), ("img", 2), ("ref", 2), ("box", 2),
    ]  # fmt: skip
    assert numbers("(1,2),(3,4)") == (1, 2, 3, 4)
    for turn, pieces in zip(turns, segments(turns), strict=True):  # nothing is lost
        text = "".join(p.text if p.kind == "text" else f"<{p.kind}>{p.text}</{p.kind}>" for p in pieces)
        assert text == turn["value"]


def test_png_shows_the_same(data, make_checkpoint, tmp_path):
    page = preview.preview(data, make_checkpoint())
    with Image.open(io.BytesIO(png_page.render(page))) as image:
        colors = {color: count for count, color in image.convert("RGB").getcolors(2**22)}
        assert image.width == png_page.WIDTH and image.height > 600
    for color in (png_page.TARGET, png_page.IGNORED, COLORS[0], COLORS[-1]):
        assert colors[ImageColor.getrgb(color)] > 50
    page.samples *= 200
    with pytest.raises(ValueError, match="smaller --num"):
        png_page.render(page)


def test_the_command(data, make_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = str(make_checkpoint())
    cli_data.main(["preview", str(data), "--model", model, "--num", "2"])
    assert "samples 2 of 3" in capsys.readouterr().out
    assert len(Page((tmp_path / "preview.html").read_bytes()).samples) == 2
    cli_data.main(["preview", str(data), "--model", model, "--ids", "3", "--out", "a.png", "--loss_on", "answers"])
    assert "samples 1 of 3" in capsys.readouterr().out
    assert Image.open("a.png").format == "PNG"
    before = sorted(os.listdir())
    for options, message in (
        (["--ids", "4", "5"], "no conversation with id '4', '5'"),
        (["--out", "x.png", "--format", "html"], "ends with .html"),
        (["--image_folder", "nowhere"], "no such folder"),
        (["--out", "nowhere/x.html"], "nowhere"),
    ):
        with pytest.raises((ValueError, OSError)) as caught:
            cli_data.main(["preview", str(data), "--model", model, *options])
        assert message in str(caught.value)
    assert sorted(os.listdir()) == before


def test_a_browser_shows_it(data, make_checkpoint, tmp_path):
    """Render with Chromium: images are shown, token colors are painted, no request is made."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium on this machine")
    page, shot = tmp_path / "preview.html", tmp_path / "shot.png"
    page.write_bytes(html_page.render(preview.preview(data, make_checkpoint())))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1600"]
    options += [f"--screenshot={shot}", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, timeout=120, text=True)
    assert shot.is_file(), done.stderr[-2000:]
    colors = {color: count for count, color in Image.open(shot).convert("RGB").getcolors(2**22)}
    for color in ("#bfe8c9", "#eef0f3", COLORS[0], COLORS[-1]):
        assert colors.get(ImageColor.getrgb(color), 0) > 50, color
    assert "evil.example" not in done.stderr and "Refused" not in done.stderr
