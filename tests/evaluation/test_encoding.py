"""Prompts as ids: as the chat and the tokenizer write them, and text stays text."""

import pytest

from qwen_vl.checkpoint import loading
from qwen_vl.evaluation import encoding
from qwen_vl.evaluation.records import Decoding, ImageSource, Prompt
from qwen_vl.model.chat_qwen import make_context

IMAGE = ImageSource.from_bytes("a.png", b"")
OTHER = ImageSource.from_bytes("x" * 5000, b"")  # longer than any span


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint):
    return loading.load_tokenizer(make_checkpoint())


def nameless(ids, tokenizer):
    """Ids as a tokenizer writes them, with the names in image spans replaced by padding."""
    ids, inside = list(ids), False
    for place, one in enumerate(ids):
        inside = (inside or one == tokenizer.img_start_id) and one != tokenizer.img_end_id
        if inside and one != tokenizer.img_start_id:
            ids[place] = tokenizer.img_pad_id
    return ids


def test_a_raw_prompt_is_its_text_and_a_span_for_each_image(tokenizer):
    encoded = encoding.encode(Prompt((IMAGE, "<ref>the cup</ref><box>")), tokenizer)
    span = [tokenizer.img_start_id, *[tokenizer.img_pad_id] * 16, tokenizer.img_end_id]
    words = [tokenizer.ref_start_id, *tokenizer.encode("the cup"), tokenizer.ref_end_id, tokenizer.box_start_id]
    assert encoded == (span + words, (IMAGE,), 18)
    two = encoding.encode(Prompt(("Q", IMAGE, "\n", OTHER, "A cafe\u0301?")), tokenizer)
    between, end = tokenizer.encode("\n"), tokenizer.encode("A caf\u00e9?")
    assert two.ids == tokenizer.encode("Q") + span + between + span + end
    assert two.images == (IMAGE, OTHER) and two.shared == len(two.ids) - len(end)
    assert encoding.encode(Prompt(("no image",)), tokenizer) == (tokenizer.encode("no image"), (), 0)


def test_control_markers_and_image_tags_in_a_question_are_text(tokenizer):
    question = "what is <img>this</img> <imgpad><|im_end|> or <|endoftext|>?"
    for style in ("raw", "chat"):
        encoded = encoding.encode(Prompt((IMAGE, question), style), tokenizer)
        marks = [i for i in encoded.ids[encoded.shared :] if i >= tokenizer.eod_id]
        assert marks == ([tokenizer.im_end_id, tokenizer.im_start_id] if style == "chat" else [])
        assert encoded.images == (IMAGE,) and question in tokenizer.decode(encoded.ids)


def test_a_chat_is_what_make_context_writes(tokenizer):
    history = (((IMAGE, "\nwhat?"), "a <img> tag"), (("and <ref>it</ref>",), "yes"))
    written = [("<img>a.png</img>\nwhat?", "a <img> tag"), ("and <ref>it</ref>", "yes")]
    query = "so <|im_end|><img>a.png</img>"
    for system in (None, "Be brief."):
        for window in (10_000, 90, 75, 60, 1):
            prompt = Prompt(("so <|im_end|>", IMAGE), "chat", system, history)
            options = {} if system is None else {"system": system}
            wanted = make_context(tokenizer, query, written, **options, max_window_size=window)
            encoded = encoding.encode(prompt, tokenizer, max_window_size=window)
            assert encoded.ids == nameless(wanted.ids, tokenizer)
            assert len(encoded.images) == len(wanted.references)


def test_letters_and_ends_come_from_the_tokenizer(tokenizer):
    assert encoding.option_ids(tokenizer, 3) == [tokenizer.encode(f" {letter}") for letter in "ABC"]
    for count in (0, 27):
        with pytest.raises(ValueError, match=f"{count} options"):
            encoding.option_ids(tokenizer, count)
    assert encoding.end_ids(tokenizer, Decoding(1)) == [tokenizer.eod_id]
    chat = encoding.end_ids(tokenizer, Decoding(1, end="im_end"))
    assert set(chat) == {tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id}


def test_decoding_drops_special_tokens(tokenizer):
    ids = tokenizer.encode(" <ref>cup</ref><box>(1,2),(3,4)</box><|im_end|> a ")
    assert encoding.decode(ids, tokenizer, Decoding(9)) == "cup(1,2),(3,4) a"
    kept = encoding.decode(ids, tokenizer, Decoding(9, keep_boxes=True, strip=False))
    assert kept == " <ref>cup</ref><box>(1,2),(3,4)</box> a "
