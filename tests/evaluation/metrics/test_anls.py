"""ANLS against the published example, the distance against the plain table, and invariants."""

import random

import pytest
from helpers.answered import pair

from qwen_vl.evaluation import metrics
from qwen_vl.evaluation.metrics.anls import ANLS, edit_distance


def plain_distance(one, other):
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (a != b)))
    return row[-1]


def test_the_distance_is_that_of_the_plain_table():
    rng = random.Random(0)
    assert edit_distance("kitten", "sitting") == 3
    for _ in range(300):
        one, other = ("".join(rng.choices("abc é", k=rng.randrange(12))) for _ in "12")
        assert edit_distance(one, other) == plain_distance(one, other), (one, other)
    long, longer = "ab" * 100, "ba" * 110  # more bits than a machine word has
    assert edit_distance(long, longer) == plain_distance(long, longer) == edit_distance(longer, long)


def test_the_published_example():
    accepted = ["Coca Cola", "Coca Cola Company"]
    assert metrics.anls("The Coca", accepted) == 0.0
    assert metrics.anls("CocaCola", accepted) == pytest.approx(0.889, abs=5e-4)
    assert metrics.anls("Coca cola", accepted) == 1.0


def test_edges():
    assert metrics.anls("ab", ["ax"]) == 0.5  # exactly 0.5 stays
    assert metrics.anls("abc", ["axy"]) == 0.0
    assert metrics.anls("  Coca \n Cola ", ["coca cola"]) == 1.0  # white space costs nothing in the distance ..
    assert metrics.anls("a      x", ["a y"]) == pytest.approx(1 - 1 / 8)  # .. and counts in the length
    assert metrics.anls("straße", ["strasse"]) == pytest.approx(1 - 2 / 7)  # upper case: ß counts two
    assert metrics.anls("ß", ["x"]) == 0.5
    assert metrics.anls("", [""]) == 1.0
    assert metrics.anls("", ["x"]) == metrics.anls("x", [""]) == 0.0
    assert metrics.anls("red", ["green", "red"]) == 1.0
    for text in ("İ", "\ud800", "\x00", "👩‍👩‍👧", "x" * 5000):
        assert metrics.anls(text, ["yes"]) == 0.0
        assert metrics.anls(text, ["yes", text]) == 1.0
    for answers in ([], "red"):
        with pytest.raises(ValueError, match="accepted answers"):
            metrics.anls("red", answers)


def test_infographics_are_broken_down_by_their_lists():
    pairs = [
        pair("5", ["5"], id="0", image="a", answer_type=["non span", "image span"], evidence=["map"]),
        pair("", ["red"], id="1", image="b", answer_type=["image span"], evidence=["photo/pciture/visual_objects"]),
        pair("ab", ["ax"], id="2", image="b", **{"operation/reasoning": ["counting"], "evidence": []}),
    ]
    result = ANLS.score(pairs)
    values = {name: (figure.value, figure.count) for name, figure in result.figures.items()}
    assert list(values.items()) == [
        ("ANLS", (50.0, 3)),
        ("answer_type/image span", (50.0, 2)),
        ("answer_type/non span", (100.0, 1)),
        ("evidence/photo/pciture/visual_objects", (0.0, 1)),
        ("evidence/map", (100.0, 1)),
        ("operation/reasoning/counting", (50.0, 1)),
    ]
    assert [sample.score for sample in result.samples] == [1.0, 0.0, 0.5]
    assert ANLS.score(pairs[::-1]).figures == result.figures
