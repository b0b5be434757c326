"""Formats with turns (LLaVA, ShareGPT, OpenAI, Qwen-VL 2, 3): to ours and back, and their errors."""

import json
import os
from pathlib import Path

import pytest
from helpers.records import turns_of

from qwen_vl.data.validation import DataError

EXAMPLES = Path(__file__).parents[3] / "data" / "examples" / "conversations.json"
URI = "data:image/png;base64,iVBORw0KGgo="


def parts(*values):
    return [{"type": "text", "text": v} if isinstance(v, str) else v for v in values]


def test_llava(to_ours):
    """Convert each <image> in its place, the system key, the roles, and an answer without loss."""
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
    """Convert JSON Lines of messages: parts of a content, data URIs as they are, `weight` 0, a system message."""
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
    """Convert 0..1000 to 0..999, tags of Qwen2-VL, and JSON of Qwen3-VL in a fence or bare, with repeated labels."""
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
def test_ours_there_and_back_changes_nothing(form, back):
    records = json.loads(EXAMPLES.read_text("utf-8"))
    extra = turns_of(f"Picture 1: <img>{URI}</img>", "a", "b\n\nPicture 2: <img>x.png</img>\n\n", "c \n")
    extra[1]["loss"] = False
    records.append({"id": "extra", "weight": 0.5, "system": "Sei kurz.", "conversations": extra})
    theirs, again = back(records, form)
    assert again == records
    text = json.dumps(theirs)
    assert ("<img>" in text) is False and ("<box>" in text) is (form != "qwen2vl")
    if form == "llava":
        assert theirs[0]["image"] == "astronaut.jpg" and theirs[0]["conversations"][0]["from"] == "human"
        assert {"bricks.jpg", "grass.jpg", "gravel.jpg"} in [set(record.get("image", ())) for record in theirs]


def test_ours_to_qwen3vl_and_back(back):
    """Write consecutive boxes as one list of JSON. Only the text between them is lost."""
    records = [r for r in json.loads(EXAMPLES.read_text("utf-8")) if "<quad>" not in json.dumps(r)]
    theirs, again = back(records, "qwen3vl")
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
    assert back(again, "qwen3vl")[1] == again


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
def test_each_wrong_turn_is_named(record, message, to_ours, folder):
    """Name record and field, and write nothing unless --skip_errors skips the record."""
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
def test_each_wrong_box_in_a_text_is_named(form, answer, message, to_ours):
    with pytest.raises(DataError, match=message):
        to_ours([{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]}], form)
