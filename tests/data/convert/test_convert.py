"""Conversion: any content is converted or reported, and what other formats cannot hold."""

import json
import random
from pathlib import Path

import pytest
from helpers.coco import coco
from helpers.records import turns_of

from qwen_vl.data.conversations import read
from qwen_vl.data.convert.convert import convert
from qwen_vl.data.validation import DataError

EXAMPLES = Path(__file__).parents[3] / "data" / "examples" / "conversations.json"


def parts(*values):
    return [{"type": "text", "text": v} if isinstance(v, str) else v for v in values]


HUMAN, GPT = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}


def test_any_content_is_converted_or_reported(folder, write):
    """Replace values at random: the result can be read, or there is a DataError and no file."""
    junk = [None, True, -1, 1e300, float("nan"), "", [], {}, [1], {"a": 1}]
    junk += ["</box>", "\ud800", "<image>", "file://", "\0"]
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
