"""POPE and HallusionBench: how yes and no are read, and their figures."""

import random

import pytest
from helpers.answered import pair

from qwen_vl.evaluation.metrics.yes_no import HALLUSION, POPE, pope_answer, whole_word_answer


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("Yes", "yes"),
        ("No, there is none.", "no"),
        ("There is no dog. Yes.", "no"),
        ("Yes. There is no cat", "yes"),
        ("It is not", "no"),
        ("NO", "yes"),  # the rule knows No, no and not
        ("no,not", "yes"),  # commas vanish before words are split
        ("nothing", "yes"),
        ("no\nyes", "yes"),
        ("", "yes"),
    ],
)
def test_popes_own_rule(text, wanted):
    assert pope_answer(text) == wanted


@pytest.mark.parametrize(
    "text, wanted",
    [("Yes.", "yes"), ("NO!", "no"), ("yes, or no", "unknown"), ("I know", "unknown"), ("yes yes", "yes")],
)
def test_whole_words(text, wanted):
    assert whole_word_answer(text) == wanted


def test_pope_reports_each_split_and_the_mean_f1():
    verdicts = {  # split: (label, answer) of four questions
        "adversarial": [("yes", "no"), ("yes", "no"), ("no", "no"), ("no", "yes")],
        "random": [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes")],
        "popular": [("yes", "yes"), ("yes", "yes"), ("no", "no"), ("no", "yes")],
    }
    pairs = [
        pair(said, [label], id=f"{split}{i}", image=f"image {i // 2}", split=split)
        for split, rows in verdicts.items()
        for i, (label, said) in enumerate(rows)
    ]
    result = POPE.score(pairs)
    values = {name: figure.value for name, figure in result.figures.items()}
    assert list(values)[:2] == ["mean F1", "random/accuracy"]
    popular = {"accuracy": 75, "precision": 200 / 3, "recall": 100, "f1": 80, "answers yes": 75}
    assert {name: values[f"popular/{name}"] for name in popular} == pytest.approx(popular)
    assert (values["random/f1"], values["adversarial/f1"]) == (50, 0)
    assert values["mean F1"] == pytest.approx(130 / 3)
    assert result.figures["mean F1"].count == 12
    shuffled = POPE.score(random.Random(0).sample(pairs, len(pairs)))
    for name, figure in result.figures.items():
        assert shuffled.figures[name].value == pytest.approx(figure.value)
        assert shuffled.figures[name].standard_error == pytest.approx(figure.standard_error)
    assert POPE.score(pairs[:4]).notes == ("mean F1 is of: adversarial",)


def test_hallusion_counts_questions_figures_and_answers():
    asked = [  # figure, question, answer, prediction
        ("0", "0", "1", "Yes"),
        ("0", "1", "0", "No."),
        ("1", "0", "1", "Yes it is"),
        ("1", "1", "1", "It might be"),
    ]
    pairs = [
        pair(
            said,
            [truth],
            id=str(i),
            image=figure,
            category="VD",
            subcategory="map",
            set_id=1,
            figure_id=figure,
            question_id=q,
        )
        for i, (figure, q, truth, said) in enumerate(asked)
    ]
    other_set = pair(
        "yes", ["no"], id="9", image="9", category="VS", subcategory="map", set_id=1, figure_id="0", question_id="0"
    )
    result = HALLUSION.score([*pairs, other_set])
    values = {name: figure.value for name, figure in result.figures.items()}
    assert values == pytest.approx({"aAcc": 60, "fAcc": 100 / 3, "qAcc": 100 / 3, "unmatched": 20})
    assert [sample.scored for sample in result.samples] == ["yes", "no", "yes", "unknown", "yes"]


def test_labels_and_test_splits_are_checked():
    with pytest.raises(ValueError, match="record '0': its answer is 'maybe'"):
        POPE.score([pair("yes", ["maybe"])])
    for metric in (POPE, HALLUSION):
        with pytest.raises(ValueError, match="1 records have no right answer"):
            metric.score([pair("yes", [])])
