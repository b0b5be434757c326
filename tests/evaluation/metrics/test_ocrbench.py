"""OCRBench: containment, formulas, and the number of right answers."""

import pytest
from helpers.answered import pair

from qwen_vl.evaluation.metrics.ocrbench import OCRBENCH, contains_answer


@pytest.mark.parametrize(
    "text, answers, is_formula, wanted",
    [
        ("The word is\nHELLO world.", ["hello"], False, True),
        ("multi\nline", ["multi line"], False, True),
        ("hell", ["hello"], False, False),
        ("b", ["a", " B "], False, True),
        ("", ["a"], False, False),
        ("X ^ { 2 }", ["X^{2}"], True, True),
        ("x ^ { 2 }", ["X^{2}"], True, False),
    ],
)
def test_an_accepted_answer_is_contained(text, answers, is_formula, wanted):
    assert contains_answer(text, answers, is_formula=is_formula) is wanted


def test_the_score_is_a_number_of_questions():
    pairs = [
        pair("a word", ["word"], id="0", image="0", type="Regular Text Recognition", dataset="IIIT5K"),
        pair("a", ["word"], id="1", image="1", type="Regular Text Recognition", dataset="IIIT5K"),
        pair("A B", ["AB"], id="2", image="2", type="Formulas", dataset="HME100k"),
        pair("a b", ["AB"], id="3", image="3", type="Handwritten Mathematical Expression Recognition"),
    ]
    figures = OCRBENCH.score(pairs).figures
    assert {name: (figure.value, figure.unit) for name, figure in figures.items()} == {
        "score": (2, "count"),
        "type/Regular Text Recognition": (1, "count"),
        "type/Formulas": (1, "count"),
        "type/Handwritten Mathematical Expression Recognition": (0, "count"),
    }
    assert figures["score"].standard_error == pytest.approx(1.0)  # sqrt(4 * 0.5^2)
    with pytest.raises(ValueError, match="OCRBench: 1 records have no right answer"):
        OCRBENCH.score([pair("a", [])])
