"""Text that a model writes: parsing, drawing, scoring and reading it as history never raise."""

import random
import unicodedata
import warnings

import pytest

from qwen_vl.evaluation import metrics
from qwen_vl.model.chat_qwen import decode_answer, make_context

TAGS = ("ref", "box", "quad", "img")
PIECES = (
    *(f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")),
    *("<imgpad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|extra_80|>", "<|extra_0|>", "<", ">", "<re"),
    *(
        "<ref>the dog</ref>",
        "<box>(1,2),(3,4)</box>",
        "<box>(700,900),(30,-4)</box>",
        "<box>(1,2)</box>",
        "<box></box>",
    ),
    *("<box>(1.5,2),(30,40)</box>", "<quad>(1,2),(3,4),(5,6),(7,8)</quad>", "<img>images/rgb.png</img>", "<ref></ref>"),
    *("(1,2)", ",", "12", "-7", str(10**400), "9" * 5000, "（１，２）", "１", "1e9", "nan", "0x1f", "1_0"),
    *("\n", " ", "\0", "\ud800", "\udfff", "é", "e\u0301", "\u0338", "狗", "😀", "a dog", "Picture 2: ", "%s{}\\"),
)


@pytest.fixture(scope="module")
def tokenizer(golden_tokenizer):
    return golden_tokenizer


def written_texts(number):
    """Return texts of random tags and numbers from a fixed seed; the first are the empty text and each piece alone."""
    source = random.Random(12)
    yield from ("", *PIECES)
    for _ in range(number):
        yield "".join(source.choices(PIECES, k=source.randint(2, 14)))


def joined(elements):
    """Return the text that a list format stands for."""
    tags = {"image": "img", "ref": "ref", "box": "box", "quad": "quad"}
    return "".join(
        content if kind == "text" else f"<{tags[kind]}>{content}</{tags[kind]}>"
        for element in elements
        for kind, content in element.items()
    )


def test_nothing_that_a_model_writes_raises(tokenizer, in_golden_dir):
    history = [("Picture 1: <img>images/exif_rotated6.jpg</img>\nwhere?", "there")]
    num_drawn = 0
    for text in written_texts(600):
        assert joined(tokenizer.to_list_format(text)) == unicodedata.normalize("NFC", text), ascii(text)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            boxes = tokenizer._fetch_all_box_with_ref(text)
        assert len(caught) == (unicodedata.normalize("NFC", text).count("<box>") > len(boxes)), ascii(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = tokenizer.draw_bbox_on_latest_picture(text, history)
        assert drawn.size == (200, 100) if boxes else drawn is None, ascii(text)
        num_drawn += bool(boxes)
        assert 0 <= metrics.box_accuracy([text], ["<box>(1,2),(3,4)</box>"]) <= 1
        assert 0 <= metrics.share_that_agree([text], ["yes"]) <= 1
        prompt = make_context(tokenizer, "and now?", [*history, ("what?", text)])
        assert "and now?" in tokenizer.decode(prompt.ids)
        plain = tokenizer.encode(text, allowed_special=set(), disallowed_special=())
        assert max(plain, default=0) < tokenizer.eod_id and isinstance(tokenizer.decode(plain), str)
    assert num_drawn > 100


def test_whatever_ids_a_model_gives_are_decoded(tokenizer):
    source = random.Random(12)
    special = sorted(tokenizer.special_tokens.values())
    for _ in range(300):
        ids = [
            source.choice((source.randrange(300), source.randrange(151936), source.choice(special[-9:])))
            for _ in range(source.randint(0, 30))
        ]
        for options in ({}, {"skip_special_tokens": True}, {"skip_special_tokens": True, "keep_image_special": True}):
            assert isinstance(tokenizer.decode(ids, **options), str)
        tokenizer.to_list_format(decode_answer(ids, tokenizer))


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<ref>dog</ref><box>(1,2),(3,4)</box><|im_end|><|extra_80|>", [{"box": (1, 2, 3, 4), "ref": "dog"}]),
        ("<ref>a</ref> or <ref>b</ref><box>(1,2),(3,4)</box>", [{"box": (1, 2, 3, 4), "ref": "b"}]),
        ("<ref>dog<box>(1,2),(3,4)</box> <ref>cat</ref><box>(5,6),(7,8)</box>",
         [{"box": (1, 2, 3, 4)}, {"box": (5, 6, 7, 8), "ref": "cat"}]),
        ("<ref>a<box>(1,2),(3,4)</box></ref><box>(5,6),(7,8)</box>", [{"box": (1, 2, 3, 4)}, {"box": (5, 6, 7, 8)}]),
        ("<box>(1,2),(3,4)<box>(5,6),(7,8)</box>", [{"box": (5, 6, 7, 8)}]),
        ("<box>(1,2)</box><box>(5,6),\n(7,8)</box>", [{"box": (5, 6, 7, 8)}]),
        ("<box>(9,8),(3,4)</box>", [{"box": (9, 8, 3, 4)}]),
        (f"<box>({10**400},-5),(3,4)</box>", [{"box": (10**400, -5, 3, 4)}]),
        (f"<box>({'9' * 5000},5),(3,4)</box>", []),
        ("<box>（１，２），（３，４）</box>", []),
        ("<box>(1,2),(3,4),(5,6)</box>", []),
        ("<quad>(1,2),(3,4),(5,6),(7,8)</quad>", []),
    ],
)  # fmt: skip
def test_valid_boxes_are_found_among_malformed_ones(tokenizer, text, boxes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert tokenizer._fetch_all_box_with_ref(text) == boxes
