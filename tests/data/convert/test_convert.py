"""Conversion: the box rule and its error bound, each format to ours and back, what is told about what cannot be."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from qwen_vl.cli import data
from qwen_vl.data.boxes import to_grid, to_pixels
from qwen_vl.data.conversations import read
from qwen_vl.data.convert.convert import convert
from qwen_vl.data.validation import DataError

EXAMPLES = Path(__file__).parents[3] / "data" / "examples" / "conversations.json"
URI = "data:image/png;base64,iVBORw0KGgo="


def turns_of(*texts):
    return [{"from": ("user", "assistant")[index % 2], "value": text} for index, text in enumerate(texts)]


def parts(*values):
    return [{"type": "text", "text": v} if isinstance(v, str) else v for v in values]


@pytest.fixture
def folder(tmp_path):
    """A folder with images a.png (640 x 480) and b.png (50 x 2000)."""
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    Image.new("RGB", (50, 2000)).save(tmp_path / "b.png")
    return tmp_path


@pytest.fixture
def to_ours(folder, write):
    """A function that converts content to ours and reads the result; text if JSON Lines."""

    def run(content, form, **options):
        name = "source.jsonl" if isinstance(content, bytes) else "source.json"
        options = {"source_format": form, "check_images": False} | options
        convert(write(content, name), folder / "out.json", **options)
        return read(folder / "out.json", check_images=options["check_images"])

    return run


def back(records, form, folder, write, **options):
    """Ours in another format, and again as ours."""
    paths = [write(records, "ours.json"), folder / "theirs.json", folder / "again.json"]
    convert(paths[0], paths[1], source_format="ours", target_format=form, check_images=False, **options)
    convert(paths[1], paths[2], source_format=form, check_images=False, **options)
    return json.loads(paths[1].read_text("utf-8")), json.loads(paths[2].read_text("utf-8"))


# ---- boxes ----------------------------------------------------------------------------------------------------------


def test_pixels_to_grid_and_back_within_half_a_step():
    """The bound that data/README.md states, and grid -> pixels -> grid without any change."""
    generator = random.Random(0)
    for width, height in [(1, 1), (7, 3000), (640, 480), (999, 1000), (1001, 4096)]:
        corners = [0, width, width / 2, *(generator.uniform(0, width) for _ in range(200))]
        for x in corners:
            x1, _, x2, _ = to_pixels(to_grid((x, 0, width, height), width, height), width, height)
            assert abs(x1 - x) <= width / 2000 * (1 + 1e-9) and abs(x2 - width) <= width / 2000 * (1 + 1e-9)
        for step in range(1000):
            box = (step, step, step, step)
            pixels = to_pixels(box, width, height)
            assert to_grid(pixels, width, height) == box
            if min(width, height) >= 20:  # as COCO's files are written
                assert to_grid([round(value, 2) for value in pixels], width, height) == box
    assert to_grid((0, 0, 640, 480), 640, 480) == (0, 0, 999, 999)
    assert to_grid((0.64, 0.479, 320, 240), 640, 480) == (1, 0, 500, 500)
    assert to_grid((-0.9, -1, 640.5, 481), 640, 480) == (0, 0, 999, 999)


@pytest.mark.parametrize("box", [(0, 0, 642, 5), (-2, 0, 5, 5), (5, 0, 4, 5), (0, 5, 5, 4), (600, 0, 700, 9)])
def test_a_box_that_cannot_be_right_is_an_error(box):
    with pytest.raises(ValueError, match=r"swapped|exceeds its image of 640 x 480 pixels"):
        to_grid(box, 640, 480)


# ---- turns ----------------------------------------------------------------------------------------------------------


def test_llava(to_ours):
    """<image> by <image>, in one place or many; a system key; the roles; an answer that is not learned."""
    records = [
        {
            "id": "1",
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}],
        },
        {
            "id": 2,
            "images": ["a.png", "file:///p/b%20c.png"],
            "system": "Be brief.",
            "model": "x",
            "conversations": [
                {"from": "human", "value": "<image>Compare\nit with <image>."},
                {"from": "gpt", "value": "No.", "loss": False},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": "Yes."},
            ],
        },
        {"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "好"}]},
    ]
    first, second, third = to_ours(records, "llava")
    assert first == {"id": "1", "conversations": turns_of("Picture 1: <img>a.png</img>\nWhat?", "A dog.")}
    turns = turns_of("Picture 1: <img>a.png</img>\nCompare\nit with Picture 2: <img>/p/b c.png</img>.", "No.")
    turns[1]["loss"] = False
    assert second == {"id": 2, "system": "Be brief.", "conversations": turns + turns_of("Sure?", "Yes.")}
    assert third["conversations"] == turns_of("Hi", "好")


def test_openai(to_ours):
    """JSON Lines of messages: parts of a content, data URIs as they are, `weight` 0, a system message."""
    image = {"type": "image_url", "image_url": {"url": URI, "detail": "low"}}
    records = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": parts("Look:", image, {**image, "image_url": "https://x.org/a.jpg"}, "Same?"),
                },
                {"role": "assistant", "content": "No.", "weight": 0},
                {"role": "user", "content": parts("And now?", image)},
                {"role": "assistant", "content": parts("Y", "es.")},
            ]
        },
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "weight": 1}]},
    ]
    first, second = to_ours("\n".join(map(json.dumps, records)).encode(), "openai")
    images = f"Picture 1: <img>{URI}</img>\nPicture 2: <img>https://x.org/a.jpg</img>\n"
    turns = turns_of(f"Look:\n{images}Same?", "No.", f"And now?\nPicture 3: <img>{URI}</img>", "Yes.")
    turns[1]["loss"] = False
    assert first == {"id": "out.json[0]", "system": "Be brief.", "conversations": turns}
    assert second["conversations"] == turns_of("Hi", "Ho")


def test_qwen2vl_and_qwen3vl_boxes(to_ours):
    """0..1000 becomes 0..999; tags of Qwen2-VL, JSON of Qwen3-VL in a fence or bare, labels that continue."""
    image = {"type": "image", "image": "file:///p/a.png"}
    answer = (
        "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(0, 12),(1000,999)<|box_end|> "
        "<|quad_start|>(1,2),(3,4),(5,6),(7,1000)<|quad_end|>"
    )
    ask = {"role": "user", "content": parts(image, "Where?")}
    (record,) = to_ours([{"messages": [ask, {"role": "assistant", "content": answer}]}], "qwen2vl")
    assert record["conversations"] == turns_of(
        "Picture 1: <img>/p/a.png</img>\nWhere?",
        "<ref>the dog</ref><box>(0,12),(999,999)</box> <quad>(1,2),(3,4),(5,6),(7,999)</quad>",
    )
    answer = (
        'Here [1]:\n```json\n[\n\t{"bbox_2d": [1, 2, 3, 1000], "label": "狗"},\n\t{"bbox_2d": [5, 6, 7.9, 8], '
        '"label": "狗"}, {"bbox_2d": [0, 0, 0, 0]}\n]\n```\nand {"bbox_2d": [9, 9, 9, 9], "label": "a"} [{"b": 1}]'
    )
    (record,) = to_ours([{"messages": [ask, {"role": "assistant", "content": answer}]}], "qwen3vl")
    assert record["conversations"][1]["value"] == (
        "Here [1]:\n<ref>狗</ref><box>(1,2),(3,999)</box><box>(5,6),(7,8)</box><box>(0,0),(0,0)</box>\n"
        'and <ref>a</ref><box>(9,9),(9,9)</box> [{"b": 1}]'
    )


@pytest.mark.parametrize("form", ["llava", "sharegpt", "openai", "qwen2vl"])
def test_ours_there_and_back_changes_nothing(form, folder, write):
    records = json.loads(EXAMPLES.read_text("utf-8"))
    extra = turns_of(f"Picture 1: <img>{URI}</img>", "a", "b\n\nPicture 2: <img>x.png</img>\n\n", "c \n")
    extra[1]["loss"] = False
    records.append({"id": "extra", "weight": 0.5, "system": "Sei kurz.", "conversations": extra})
    theirs, again = back(records, form, folder, write)
    assert again == records
    text = json.dumps(theirs)
    assert ("<img>" in text) is False and ("<box>" in text) is (form != "qwen2vl")
    if form == "llava":
        assert theirs[0]["image"] == "astronaut.jpg" and theirs[0]["conversations"][0]["from"] == "human"
        assert {"bricks.jpg", "grass.jpg", "gravel.jpg"} in [set(record.get("image", ())) for record in theirs]


def test_ours_to_qwen3vl_and_back(folder, write):
    """One list of JSON for boxes in a row; what stands between them is lost, and nothing else."""
    records = [r for r in json.loads(EXAMPLES.read_text("utf-8")) if "<quad>" not in json.dumps(r)]
    theirs, again = back(records, "qwen3vl", folder, write)
    for record, result in zip(records, again, strict=True):
        for turn, other in zip(record["conversations"], result["conversations"], strict=True):
            assert other["value"] == turn["value"].replace("</box>, <ref>", "</box><ref>").replace(
                "</box>，<ref>", "</box><ref>"
            )
    answer = theirs[0]["messages"][3]["content"]
    assert json.loads(answer.removeprefix("```json").removesuffix("```")) == [
        {"bbox_2d": [539, 670, 998, 999], "label": "the helmet"},
        {"bbox_2d": [694, 0, 920, 566], "label": "the shuttle model"},
    ]
    assert back(again, "qwen3vl", folder, write)[1] == again


# ---- pixels ---------------------------------------------------------------------------------------------------------


def coco(**changes):
    return {
        "images": [{"id": 5, "file_name": "a.png", "width": 640, "height": 480}, {"id": 6, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "交通灯"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [10, 20, 100.5, 50], "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 1, "bbox": [0, 0, 640, 480]},
            {"id": 3, "image_id": 5, "category_id": 3, "bbox": [320, 240, 1, 1]},
            {"id": 4, "image_id": 6, "category_id": 1, "bbox": [25, 1000, 25, 1000.4]},
            {"id": 5, "image_id": 6, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    } | changes


def test_coco_and_back(to_ours, folder, write):
    """One conversation an image and category; sizes from the file or the image; back within half a step."""
    records = to_ours(coco(), "coco", check_images=True, prompt="框出图中的{phrase}")
    assert [record["id"] for record in records] == ["5-交通灯", "5-dog", "6-dog"]
    assert records[0]["conversations"] == turns_of(
        "Picture 1: <img>a.png</img>\n框出图中的交通灯",
        "<ref>交通灯</ref><box>(15,41),(172,145)</box><box>(500,500),(501,502)</box>",
    )
    assert records[2]["conversations"][1]["value"] == "<ref>dog</ref><box>(500,500),(999,999)</box>"
    convert(folder / "out.json", folder / "coco.json", source_format="ours", target_format="coco")
    result = json.loads((folder / "coco.json").read_text("utf-8"))
    assert {image["file_name"]: (image["width"], image["height"]) for image in result["images"]} == {
        "a.png": (640, 480),
        "b.png": (50, 2000),
    }
    names = {category["id"]: category["name"] for category in result["categories"]}
    sizes = {image["id"]: (image["width"], image["height"]) for image in result["images"]}
    expected = [annotation for annotation in coco()["annotations"] if not annotation.get("iscrowd")]
    found = sorted(result["annotations"], key=lambda annotation: annotation["bbox"])
    for theirs, ours in zip(sorted(expected, key=lambda annotation: annotation["bbox"]), found, strict=True):
        width, height = sizes[ours["image_id"]]
        assert names[ours["category_id"]] == {1: "dog", 3: "交通灯"}[theirs["category_id"]]
        for index, step in enumerate((width / 1000, height / 1000)):
            (x, w), (other_x, other_w) = ((box["bbox"][index], box["bbox"][index + 2]) for box in (theirs, ours))
            end = min(x + w, (width, height)[index])
            assert abs(x - other_x) <= step / 2 + 0.01 and abs(end - other_x - other_w) <= step / 2 + 0.02
    again = convert(folder / "coco.json", folder / "again.json", source_format="coco", prompt="框出图中的{phrase}")
    assert again.num_written == 3
    assert [r["conversations"] for r in read(folder / "again.json")] == [r["conversations"] for r in records]


def test_refcoco_and_back(to_ours, folder):
    """A conversation for each sentence, from flat records in either box format and from refs joined with COCO's."""
    flat = [
        {"image": "a.png", "bbox": [64, 48, 64, 48], "sentences": [{"sent": "left dog"}, {"sent": "the dog"}]},
        {"file_name": "b.png", "width": 50, "height": 2000, "bbox": [0, 0, 25, 500], "sentence": "top"},
    ]
    records = to_ours(flat, "refcoco", check_images=True)
    answers = [record["conversations"][1]["value"] for record in records]
    assert answers[0] == "<ref>left dog</ref><box>(100,100),(200,200)</box>"
    assert answers[2] == "<ref>top</ref><box>(0,0),(500,250)</box>"
    assert [record["id"] for record in records] == ["0-0", "0-1", "1"]
    corners = [record | {"bbox": [x, y, x + w, y + h]} for record in flat for x, y, w, h in [record["bbox"]]]
    assert to_ours(corners, "refcoco", check_images=True, box_format="xyxy") == records
    refs = [{"ref_id": 9, "ann_id": 1, "file_name": "a_1.png", "sentences": [{"sent": "x"}]}]
    (joined,) = to_ours(coco(refs=refs), "refcoco")
    assert joined["id"] == "9" and joined["conversations"][1]["value"] == "<ref>x</ref><box>(15,41),(172,145)</box>"

    to_ours(flat, "refcoco", check_images=True)
    convert(folder / "out.json", folder / "refs.json", source_format="ours", target_format="refcoco")
    result = json.loads((folder / "refs.json").read_text("utf-8"))
    assert [[sentence["sent"] for sentence in ref["sentences"]] for ref in result] == [["left dog", "the dog"], ["top"]]
    assert result[0]["bbox"] == [64.32, 48.24, 64.0, 48.0]
    convert(folder / "refs.json", folder / "again.json", source_format="refcoco")
    assert [r["conversations"] for r in read(folder / "again.json")] == [r["conversations"] for r in records]


# ---- what cannot be converted ---------------------------------------------------------------------------------------

HUMAN, GPT = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}
BAD_TURNS = [
    ({"image": "a.png", "conversations": [{"from": "tool", "value": "x"}, GPT]}, r'conversations\[0\].from: "tool"'),
    ({"image": "a.png", "conversations": [{"from": "human", "value": "What?"}, GPT]}, r"image: 1 images, 0 <image>"),
    ({"conversations": [HUMAN, GPT]}, r"conversations\[0\].value: more <image> than the 0 images"),
    ({"image": "a.png", "conversations": [HUMAN, HUMAN | {"value": "x"}, GPT]}, "a second 'user' turn in a row"),
    ({"image": [7], "conversations": [HUMAN, GPT]}, r"image\[0\]: 7; use a path"),
    ({"video": "a.mp4", "conversations": [HUMAN, GPT]}, "video: only text and images"),
    ({"image": "gone.png", "conversations": [HUMAN, GPT]}, '"gone.png": no such file'),
    ({"image": "a.png", "conversations": [HUMAN]}, "nothing to learn"),
    ({"id": "x"}, "no turns; give a list of them under 'conversations' or 'messages'"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, r'messages\[0\].content\[0\].type: "audio"'),
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content: a null"),
    ("x", "a string; use an object with turns"),
]  # fmt: skip


@pytest.mark.parametrize("record, message", BAD_TURNS)
def test_what_is_told_about_turns(record, message, to_ours, folder):
    """Record and field, all at once; nothing is written, unless --skip_errors leaves them out."""
    good = {"image": "a.png", "conversations": [HUMAN, GPT]}
    with pytest.raises(DataError, match=message) as caught:
        to_ours([good, record], "sharegpt", check_images=True)
    assert "source.json[1]" in str(caught.value)
    assert not [name for name in os.listdir(folder) if "out" in name]
    assert len(to_ours([good, record], "sharegpt", check_images=True, skip_errors=True)) == 1


@pytest.mark.parametrize(
    "form, answer, message",
    [
        ("qwen2vl", "<|box_start|>(1,2),(3,1200)<|box_end|>", r"boxes in pixels \(Qwen2.5-VL\) must be scaled"),
        ("qwen2vl", "<|box_start|>(1,2)<|box_end|>", "has 2 numbers; use 4"),
        ("qwen2vl", "<|box_start|>(5,2),(3,8)<|box_end|>", "give the top left corner first"),
        ("qwen3vl", '[{"bbox_2d": [1, 2, 3, "x"]}]', "use 4 numbers"),
        ("qwen3vl", '[{"bbox_2d": [1, 2, 3, 4], "label": "a"', '"bbox_2d" that cannot be read'),
        ("qwen3vl", '[{"point_2d": [1, 2], "label": "a"}]', "no point in our format"),
        ("qwen3vl", '[{"bbox_2d": [1, 2, 3, 4], "conf": 1}]', "only bbox_2d and a label"),
    ],
)
def test_what_is_told_about_boxes_in_text(form, answer, message, to_ours):
    with pytest.raises(DataError, match=message):
        to_ours([{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]}], form)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bbox": [10, 20, 700, 9]}, r"annotations\[0\] \(id 8\).bbox: .*640 x 480"),
        ({"bbox": [10, 20, 0, 9]}, "has no area"),
        ({"bbox": [1, 2, 3]}, "use four numbers"),
        ({"image_id": 7}, r"image_id: 7 is unknown"),
        ({"category_id": [1]}, r"category_id: \[1\] is unknown"),
    ],
)
def test_what_is_told_about_coco(changes, message, to_ours):
    annotation = {"id": 8, "image_id": 5, "category_id": 1, "bbox": [0, 0, 5, 5]} | changes
    with pytest.raises(DataError, match=message):
        to_ours(coco(annotations=[annotation]), "coco")


def test_whatever_stands_in_a_file_it_is_converted_or_named(folder, write):
    """Values replaced at random: a result that is read, or a DataError and no file."""
    junk = [
        None,
        True,
        -1,
        1e300,
        float("nan"),
        "",
        [],
        {},
        [1],
        {"a": 1},
        "</box>",
        "\ud800",
        "<image>",
        "file://",
        "\0",
    ]
    image = {"type": "image_url", "image_url": {"url": "a.png"}}
    asked = [{"role": "user", "content": parts("t", image)}, {"role": "assistant", "content": "y", "weight": 0}]
    box = '[{"bbox_2d": [1, 2, 3, 4], "label": "x"}] <|box_start|>(1,2),(3,4)<|box_end|>'
    llava = {"id": 1, "image": ["a.png"], "system": "s", "conversations": [HUMAN, GPT | {"value": box}]}
    refs = [{"ref_id": 1, "ann_id": 1, "sentences": [{"sent": "x"}]}]
    sources = [([llava, {"messages": asked + turns_of("q", box)}], chat) for chat in ("llava", "qwen2vl", "qwen3vl")]
    sources += [
        (coco(), "coco"),
        (coco(refs=refs), "refcoco"),
        ([{"image": "a.png", "bbox": [1, 2, 3, 4], "caption": "x"}], "refcoco"),
    ]
    generator, out, num_written = random.Random(0), folder / "out.json", 0
    for _ in range(300):
        content, form = generator.choice(sources)
        content = json.loads(json.dumps(content))
        place, key = content, generator.choice(list(content) if isinstance(content, dict) else range(len(content)))
        while isinstance(place[key], dict | list) and place[key] and generator.random() < 0.8:
            place = place[key]
            key = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place[key] = generator.choice(junk)
        target = generator.choice(["ours", "ours", "openai", "coco", "qwen3vl"])
        out.unlink(missing_ok=True)
        try:
            convert(
                write(content),
                out,
                source_format=form,
                target_format="ours" if target == form else target,
                skip_errors=True,
            )
        except DataError:
            assert not out.exists()
            continue
        num_written += 1
        if target == "ours":
            read(out)
    assert num_written > 50 and not list(folder.glob(".*"))


def test_what_cannot_be_written(folder, write):
    def error(text, form, **options):
        source = write([{"id": 1, "conversations": turns_of("<img>a.png</img>?", text)}], "ours.json")
        with pytest.raises(DataError) as caught:
            convert(source, folder / "x.json", source_format="ours", target_format=form, **options)
        return str(caught.value)

    quad = "<ref>a</ref><quad>(0,0),(0,0),(0,0),(0,0)</quad>"
    assert "holds a <quad>" in error(quad, "coco") and "holds a <quad>" in error(quad, "qwen3vl")
    assert "conversations[1].value: a <box> without a phrase" in error("<box>(0,0),(1,1)</box>", "coco")
    assert "holds <image> as text" in error("a <image>", "llava")
    assert "nothing to write" in error("no box", "refcoco")
    assert not (folder / "x.json").exists()


def test_the_command(folder, write, capsys):
    source = write([{"id": "n", "image": "gone.png", "extra": 1, "conversations": [HUMAN, GPT]}] * 2, "llava.json")
    out = str(folder / "out.jsonl")
    with pytest.raises(DataError, match="2 problems in 2 records; nothing written"):
        data.main(["convert", str(source), out, "--from", "llava"])
    data.main(["convert", str(source), out, "--from", "llava", "--pictures", "any"])
    assert (
        "2 records from 2 records" in (shown := capsys.readouterr().out)
        and "key 'extra' of a record is left out" in shown
    )
    assert len(read(out, check_images=False)) == 2
    shutil.copy(folder / "a.png", folder / "gone.png")
    good = {"id": "g", "image": "a.png", "conversations": [HUMAN, GPT]}
    source = write([good, {"id": "b", "conversations": [HUMAN, GPT]}], "llava.json")
    data.main(["convert", str(source), out, "--from", "llava", "--skip_errors"])
    (skipped,) = map(json.loads, Path(f"{out}.skipped.jsonl").read_text().splitlines())
    assert (skipped["record"], skipped["id"], skipped["field"]) == ("[1]", "b", "conversations[0].value")
    for options in (
        [out, out, "--from", "llava"],
        [str(source), out, "--from", "ours"],
        [str(source), out, "--from", "ours", "--to", "coco"],
        [str(source), out, "--from", "coco", "--prompt", "Where?"],
    ):
        with pytest.raises(SystemExit):
            data.main(["convert", *options])
