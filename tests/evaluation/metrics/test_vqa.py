"""VQA accuracy against literals of both tools, and invariants."""

import random

import pytest
from helpers.answered import pair

from qwen_vl.evaluation import metrics
from qwen_vl.evaluation.metrics.vqa import CONTRACTIONS, SIGNS, VQA_ACCURACY

STRANGE = ["", " ", "\n", "\x00", "İ", "ß", "é́", "\ud800", "👩‍👩‍👧", "١,٢ x", "。", "." * 50, "'" * 9, "a\u2028b"]


@pytest.mark.parametrize(("same", "wanted"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (7, 1), (10, 1)])
@pytest.mark.parametrize("variant", ["official", "published"])
def test_annotators_that_agree(same, wanted, variant):
    answers = ["red"] * same + [f"other {i}" for i in range(10 - same)]
    random.Random(same).shuffle(answers)
    assert metrics.vqa_accuracy("red", answers, variant) == pytest.approx(wanted, abs=1e-12)


def test_few_annotators():
    assert metrics.vqa_accuracy("red", ["red"]) == 0.0  # leaving out the only one leaves none
    assert metrics.vqa_accuracy("red", ["red"] * 3) == pytest.approx(2 / 3)
    assert metrics.vqa_accuracy("red", ["red", "red", "blue"]) == pytest.approx((2 / 3 + 2 / 3) / 3)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a-b", "a b"),  # becomes a space
        ("a - b", "a  b"),  # next to a space: deleted, and nothing is trimmed
        ("a-b c- d", "ab c d"),  # next to a space anywhere: deleted everywhere
        ("a-b, c", "a b c"),  # each sign by itself
        ("1,000 a-b", "1000 ab"),  # digits with a comma: every sign is deleted
        ("a,b", "a b"),
        ("what?!", "what  "),
        ("-x", " x"),
        (" -x", " x"),
        ("mr. x 1.5 .5 1.", "mr x 1.5 .5 1"),
        ("." * 40, "." * 8),  # at most 32 of them
        ("it's 5% & $3: ok", "it's 5% & $3: ok"),
        ("", ""),
    ],
)
def test_punctuation(text, wanted):
    assert metrics.vqa_normalize_punctuation(text) == wanted


def test_every_sign():
    assert len(set(SIGNS)) == len(SIGNS) == 21
    for sign in SIGNS:
        assert metrics.vqa_normalize_punctuation(f"a{sign}b") == "a b"
        assert metrics.vqa_normalize_punctuation(f"a{sign}b {sign}c") == "ab c"
    for kept in "':%$&*#|~^’":
        assert metrics.vqa_normalize_punctuation(f"a{kept}b {kept}c") == f"a{kept}b {kept}c"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The two  Dogs", "2 dogs"),
        ("none", "0"),
        ("zero ten eleven", "0 10 eleven"),
        ("an apple a day", "apple day"),
        ("the", ""),
        ("dont Cant", "don't can't"),
        ("Im ive", "im ive"),  # keys with a capital never match
        ("couldntve couldn'tve couldnt've", "couldntve couldn't've couldn't've"),
        ("yalld've ow's'at somebody'd let's twas", "yalld've 'ow's'at somebodyd let's 'twas"),
        ("yallll y'allll yall'll", "yallll y'all'll y'all'll"),
    ],
)
def test_words(text, wanted):
    assert metrics.vqa_normalize_words(text) == wanted


def test_there_are_as_many_contractions_as_in_the_tool():
    assert len(CONTRACTIONS) == 120


def test_variants_differ_where_the_answers_are_normalized():
    three = ["Three"] * 9 + ["3"]
    assert metrics.vqa_accuracy("three", three, "official") == 1.0
    assert metrics.vqa_accuracy("three", three, "published") == pytest.approx(0.3)  # only the one that says 3
    bus = ["the bus"] * 9 + ["bus"]
    assert metrics.vqa_accuracy("the bus", bus) == 1.0
    assert metrics.vqa_accuracy("the bus", bus, "published") == pytest.approx(0.3)
    # All answers identical: the official tool normalizes nothing, the published one the prediction.
    assert metrics.vqa_accuracy("The bus", ["the bus"] * 10) == 0.0
    assert metrics.vqa_accuracy(" the bus\n", ["the bus "] * 10) == 1.0
    assert metrics.vqa_accuracy("the bus", ["the bus"] * 10, "published") == 0.0
    assert metrics.vqa_accuracy("The Bus", ["bus"] * 10, "published") == 1.0
    assert metrics.vqa_accuracy("a.", ["a."] * 10) == 1.0


def test_whatever_a_model_writes_is_scored():
    for text in STRANGE:
        for variant in ("official", "published"):
            assert metrics.vqa_accuracy(text, ["red"] * 9 + ["blue"], variant) == 0.0
            assert 0 <= metrics.vqa_accuracy("red", [text, "red"] * 5, variant) <= 1


def test_wrong_arguments_are_refused():
    for answers in ([], (), "red"):
        with pytest.raises(ValueError, match="accepted answers"):
            metrics.vqa_accuracy("red", answers)
    with pytest.raises(ValueError, match="'official' or 'published'"):
        metrics.vqa_accuracy("red", ["red"] * 10, "both")


def make_pairs():
    kinds = [("what", "other"), ("is it", "yes/no"), ("how many", "number"), ("what", "number")]
    texts = [("Red.", "red"), ("yes", "yes"), ("two", "2"), ("", "7")]
    return [
        pair(said, [right] * 5 + ["else"] * 5, id=str(i), image=f"{i // 2}.jpg", question_type=q, answer_type=a)
        for i, ((said, right), (q, a)) in enumerate(zip(texts, kinds, strict=True))
    ]


def test_a_benchmark_is_broken_down_by_type():
    result = VQA_ACCURACY.score(make_pairs())
    values = {name: (figure.value, figure.count) for name, figure in result.figures.items()}
    assert values == {
        "accuracy": (75.0, 4),
        "accuracy as published": (75.0, 4),
        "question_type/how many": (100.0, 1),
        "question_type/is it": (100.0, 1),
        "question_type/what": (50.0, 2),
        "answer_type/number": (50.0, 2),
        "answer_type/other": (100.0, 1),
        "answer_type/yes/no": (100.0, 1),
    }
    assert result.figures[result.headline].standard_error == pytest.approx(100 * (0.5**2 + 0.5**2) ** 0.5 / 4)
    assert [sample.scored for sample in result.samples] == ["red", "yes", "2", ""]
    assert VQA_ACCURACY.score(make_pairs()[::-1]).figures == result.figures


def test_a_perfect_model_and_a_silent_one():
    perfect = [pair(right, [right] * 4 + ["other"] * 6, id=right) for right in ("red", "The 2 cats", "no.")]
    assert VQA_ACCURACY.score(perfect).figures["accuracy"].value == 100.0
    silent = [pair("", ["red"] * 10, id=str(i)) for i in range(3)]
    assert VQA_ACCURACY.score(silent).figures["accuracy"].value == 0.0
    with pytest.raises(ValueError, match="record '9' has no accepted answer"):
        VQA_ACCURACY.score([pair("red", [], id="9")])
    with pytest.raises(ValueError, match="no answered records"):
        VQA_ACCURACY.score([])
    with pytest.raises(ValueError, match="record '9': the answer has no text"):
        VQA_ACCURACY.score([pair(None, ["red"], id="9")])
