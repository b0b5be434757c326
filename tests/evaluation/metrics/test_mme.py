"""MME: points of a subtask, sums, and answers that say neither yes nor no."""

import math
import random

import pytest
from helpers.answered import pair

from qwen_vl.evaluation.metrics import mme_scores
from qwen_vl.evaluation.metrics.mme import COGNITION, MME, PERCEPTION, mme_answer


def record(subtask, image, label, prediction):
    return {"subtask": subtask, "image": image, "question": "?", "label": label, "prediction": prediction}


RECORDS = [
    record("existence", "1.jpg", "Yes", "Yes, there is."),
    record("existence", "1.jpg", "No", "no"),
    record("existence", "2.jpg", "Yes", "Yes"),
    record("existence", "2.jpg", "No", "Yes"),
    record("OCR", "1.jpg", "Yes", "The answer is yes"),
    record("OCR", "1.jpg", "No", " no."),
    record("code_reasoning", "1.png", "Yes", "yes"),
    record("code_reasoning", "1.png", "No", "No"),
]


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("Yes", "yes"),
        ("NO.", "no"),
        (" yes", "yes"),
        ("  yes", "other"),  # the first four characters are "  ye"
        ("not", "no"),
        ("I know", "other"),
        ("know", "no"),  # the rule of the benchmark's own tool
        ("The", "other"),
        ("", "other"),
    ],
)
def test_the_first_four_characters_decide(text, wanted):
    assert mme_answer(text) == wanted


def test_points_of_subtasks_and_their_sums():
    scores = mme_scores(RECORDS)
    assert scores == {
        "perception": 175,
        "cognition": 200,
        "existence": 125,  # 3 of 4, 1 of 2 images
        "OCR": 50,  # 1 of 2, no image; an image of the same name in another subtask is another one
        "code_reasoning": 200,
        "other": 1,
    }
    assert mme_scores(random.Random(0).sample(RECORDS, len(RECORDS))) == scores
    renamed = [{**one, "category": one["subtask"], "answer": one["label"]} for one in RECORDS]
    for one in renamed:
        del one["subtask"], one["label"]
    assert mme_scores(renamed) == scores


def test_right_answers_give_the_maximum_and_empty_ones_nothing():
    names = PERCEPTION + COGNITION
    assert len(names) == 14
    complete = [record(name, image, label, label) for name in names for image in "ab" for label in ("Yes", "No")]
    best = mme_scores(complete)
    assert (best["perception"], best["cognition"], best["other"]) == (2000, 800, 0)
    worst = mme_scores([{**one, "prediction": ""} for one in complete])
    assert (worst["perception"], worst["cognition"], worst["other"]) == (0, 0, 56)


def test_errors_name_record_and_key():
    bad = [RECORDS[0], {key: value for key, value in RECORDS[1].items() if key != "label"}]
    with pytest.raises(ValueError, match="record 2 has no 'label'"):
        mme_scores(bad)
    with pytest.raises(ValueError, match="record 1: unknown subtask 'hue'"):
        mme_scores([{**RECORDS[0], "subtask": "hue"}])
    with pytest.raises(ValueError, match="record 1: the label is 'maybe'"):
        mme_scores([{**RECORDS[0], "label": "maybe"}])


def test_the_metric_reports_what_the_function_returns():
    pairs = [
        pair(
            one["prediction"],
            [one["label"]],
            id=str(i),
            image=f"{one['subtask']}/{one['image']}",
            category=one["subtask"],
        )
        for i, one in enumerate(RECORDS)
    ]
    result = MME.score(pairs)
    scores = mme_scores(RECORDS)
    assert result.headline == "perception"
    for name in ("perception", "cognition", "existence", "OCR", "code_reasoning"):
        assert (result.figures[name].value, result.figures[name].unit) == (scores[name], "points")
    assert [result.figures[name].count for name in ("perception", "existence", "cognition")] == [6, 4, 2]
    # two images with 200 and 50 points: each is 75 away from their mean
    assert result.figures["existence"].standard_error == pytest.approx(math.sqrt(2 * 75**2) / 2)
    assert result.figures["perception"].standard_error == pytest.approx(math.sqrt(2 * 75**2) / 2)
    assert result.figures["OCR"].standard_error is None
    assert [sample.unmatched for sample in result.samples].index(True) == 4
    assert "color" in result.notes[0]
