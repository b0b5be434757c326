"""Short answers: exact match, the cut of GQA and relaxed accuracy, against literals."""

import random

import pytest
from helpers.answered import pair

from qwen_vl.evaluation import metrics
from qwen_vl.evaluation.metrics.text import EXACT_MATCH, GQA, RELAXED_ACCURACY


def test_exact_match():
    assert metrics.exact_match(" Red\n", ["blue", "red "]) == 1.0
    assert metrics.exact_match("red.", ["red"]) == 0.0
    assert metrics.exact_match("", ["red"]) == 0.0
    assert metrics.exact_match("İ", ["i̇"]) == 1.0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Yes, it is.", "yes"),
        ("It is a red car.", "red car"),
        ("extra large", "large"),  # "a " stands inside a word: the published rule
        ("The left of the table", "left"),  # .. the words in order, then ` of`
        ("is this is that", "th"),  # between the first and the second occurrence, also of the one inside "this"
        ("on the table the cat", "table"),
        ("cup!", "cup"),
        (" of wood", "of wood"),  # stripped before
        ("wood of oak of ash", "wood"),
        ("", ""),
        (".", ""),
    ],
)
def test_the_cut_of_gqa(text, wanted):
    assert metrics.gqa_answer(text) == wanted


def test_relaxed_accuracy_of_the_published_check():
    said = ["abc", "abc", "Abc", "100%", "100%", "100%", "100%", "Don't"]
    accepted = ["abc", "Abc", "abc", "96%", "94%", "0.96", "0.94", "Won't"]
    pairs = [pair(text, [right], id=str(i)) for i, (text, right) in enumerate(zip(said, accepted, strict=True))]
    assert RELAXED_ACCURACY.score(pairs).figures["relaxed accuracy"].value == 62.5


@pytest.mark.parametrize(
    ("prediction", "answer", "official", "published"),
    [
        ("105", "100", 1, 1),
        ("95", "100", 1, 0),  # 5 of 95 is more than 5%
        ("100", "95", 0, 1),
        ("2010", "2008", 1, 1),  # years are numbers, too
        ("-100", "100", 0, 0),
        ("0", "0", 1, 1),
        ("0.0", "0", 0, 0),  # a target of 0 is compared as a text
        ("0", "5", 0, 0),
        ("50%", "0.5", 1, 1),
        ("50", "50%", 0, 0),
        ("50 %", "0.5", 1, 1),  # float() takes outer white space
        ("1,000", "1000", 0, 0),
        ("$5", "5", 0, 0),
        ("5.", "5", 1, 1),  # float() takes it
        ("yes.", "yes", 0, 0),
        (" YES ", "yes", 1, 1),
        ("yes", "yes ", 0, 0),  # only the prediction is stripped
        ("nan", "nan", 0, 0),
        ("inf", "inf", 0, 0),
        ("1e400", "5", 0, 0),
        ("1e308", "1e-308", 0, 0),
        ("%", "%", 1, 1),
        ("", "5", 0, 0),
    ],
)
def test_relaxed_accuracy(prediction, answer, official, published):
    assert metrics.relaxed_accuracy(prediction, [answer]) == official
    assert metrics.relaxed_accuracy(prediction, [answer], "published") == published
    assert metrics.relaxed_accuracy(prediction, ["other", answer]) == official


@pytest.mark.parametrize("rule", [metrics.exact_match, metrics.relaxed_accuracy])
def test_wrong_arguments_are_refused(rule):
    for answers in ([], "red"):
        with pytest.raises(ValueError, match="accepted answers"):
            rule("red", answers)
    with pytest.raises(ValueError, match="'official' or 'published'"):
        metrics.relaxed_accuracy("red", ["red"], "strict")


def test_variants_stand_beside_the_headline():
    pairs = [
        pair("95", ["100"], id="0"),
        pair("no.", ["yes", "no"], id="1"),
        pair("It is red", ["red"], id="2"),
        pair("", ["red"], id="3"),
    ]
    relaxed, cut = RELAXED_ACCURACY.score(pairs), GQA.score(pairs)
    assert {name: figure.value for name, figure in relaxed.figures.items()} == {
        "relaxed accuracy": 25.0,
        "relaxed accuracy as published": 0.0,
        "hint: final full stop removed": 50.0,
    }
    assert [figure.value for figure in cut.figures.values()] == [50.0, 0.0]
    assert (relaxed.headline, cut.headline) == ("relaxed accuracy", "accuracy")
    assert [sample.scored for sample in cut.samples] == ["95", "no", "red", ""]
    assert relaxed.samples[1].extra == {"published": 0.0, "without_stop": 1.0}


@pytest.mark.parametrize("metric", [EXACT_MATCH, GQA, RELAXED_ACCURACY])
def test_invariants(metric):
    words = ["red", "12%", "7", "two cats", "图", "x\u2028y", "0"]
    perfect = [pair(word, ["other", word], id=word) for word in words]
    assert metric.score(perfect).figures[metric.score(perfect).headline].value == 100.0
    silent = [pair("", [word], id=word) for word in words]
    assert {figure.value for figure in metric.score(silent).figures.values()} == {0.0}
    mixed = perfect[:3] + silent[3:]
    assert metric.score(random.Random(0).sample(mixed, len(mixed))).figures == metric.score(mixed).figures
