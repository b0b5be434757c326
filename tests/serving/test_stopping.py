"""The text of a token stream: whole characters, stop words across tokens, and the text of `decode`."""

import random

import pytest

from qwen_vl.checkpoint import loading
from qwen_vl.model.chat_qwen import decode_answer
from qwen_vl.serving.stopping import TextStream, held_back

TEXTS = ["Hello there.", "  你好，世界！\n这是🐱🏳️‍🌈。 ", "\n\n<ref>猫</ref><box>(1,2),(3,4)</box>", "a \n b", " ", ""]


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint):
    return loading.load_tokenizer(make_checkpoint())  # few ranks: a character is several tokens


def pieces(tokenizer, ids, stop=(), sizes=(1,), **options):
    """Return the pieces of a stream of ids in groups of these sizes, and whether a stop word came."""
    stream, given, place, n = TextStream(tokenizer, stop, **options), [], 0, 0
    while place < len(ids):
        size = sizes[n % len(sizes)]
        given.append(stream.push(ids[place : place + size]))
        place, n = place + size, n + 1
    return [*given, stream.close()], stream.stopped


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 3), (99,)])
def test_the_pieces_are_the_text_of_chat(tokenizer, text, sizes):
    ids = tokenizer.encode(text)
    given, stopped = pieces(tokenizer, ids, sizes=sizes)
    assert "".join(given) == decode_answer(ids, tokenizer) == text.strip()
    assert not stopped and not any("\ufffd" in piece for piece in given)
    assert "".join(pieces(tokenizer, ids, sizes=sizes, strip=False)[0]) == text


def test_a_character_comes_when_it_is_complete(tokenizer):
    ids = tokenizer.encode("🐱猫")
    given, _ = pieces(tokenizer, ids)
    assert len(ids) >= 5 and sum(bool(piece) for piece in given) == 2
    given, _ = pieces(tokenizer, ids[:-1])  # a limit of tokens cut it off
    assert "".join(given) == decode_answer(ids[:-1], tokenizer) == "🐱\ufffd"


@pytest.mark.parametrize(
    "text, stop, expected",
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STOP two", ["TOP t", "STOP"], "one "),
        ("one STO", ["STOP"], "one STO"),
        ("aaab", ["aab"], "a"),
        ("等一下。停止，谢谢", ["停止"], "等一下。"),
        ("看🐱了", ["🐱"], "看"),
        ("x\nObservation: y", ["\nObservation:", "Observation:"], "x"),
        ("xObservation: y", ["\nObservation:", "Observation:"], "x"),
        ("\nfirst\nsecond", ["\n"], ""),
        ("a  \n", ["STOP"], "a"),
        ("a<box>(1,2)", ["<box>"], "a"),
        ("nothing", [], "nothing"),
    ],
)
@pytest.mark.parametrize("sizes", [(1,), (3,), (99,)])
def test_a_stop_word_ends_the_text(tokenizer, text, stop, expected, sizes):
    ids = tokenizer.encode(text)
    given, stopped = pieces(tokenizer, ids, stop, sizes)
    assert "".join(given) == expected
    assert stopped == any(word in text for word in stop)


def test_the_beginning_of_a_stop_word_is_held_back(tokenizer):
    stream = TextStream(tokenizer, ["STOP"])
    assert stream.push(tokenizer.encode("go ST")) == "go"
    assert stream.push(tokenizer.encode("AR")) == " STAR"
    assert stream.push(tokenizer.encode(" STOP it")) == " "
    assert stream.stopped and stream.push(tokenizer.encode("more")) == "" and stream.close() == ""
    assert held_back("xabab", ["ababc", "b"]) == 4 and held_back("x", ["y"]) == 0


def test_any_ids_give_the_text_of_chat(tokenizer):
    """Bytes that are no UTF-8, tags of invented images, ids beyond the vocabulary."""
    draw, special = random.Random(0), [tokenizer.img_start_id, tokenizer.img_end_id, tokenizer.img_pad_id]
    for _ in range(200):
        ids = [
            draw.choice([*special, draw.randrange(300), draw.randrange(1000), len(tokenizer) + 1]) for _ in range(24)
        ]
        given, _ = pieces(tokenizer, ids, sizes=(draw.randrange(1, 5),))
        assert "".join(given) == decode_answer(ids, tokenizer)
        words = ["e", "\ufffd\ufffd", "it"]
        one, many = (pieces(tokenizer, ids, words, sizes=(size,)) for size in (1, 7))
        assert "".join(one[0]) == "".join(many[0]) and one[1] == many[1]
