"""MMBench: circular, vanilla and vote, over questions."""

import random

import pytest

from qwen_vl.evaluation.metrics import mmbench_scores
from qwen_vl.evaluation.metrics.mmbench import MMBENCH, NEXT_ROTATION
from qwen_vl.evaluation.metrics.result import Pair
from qwen_vl.evaluation.records import Answer, ImageSource, Record


def rotations(question, texts, right, chosen, losses=None, **fields):
    """Return the records of one question: `chosen` has a text (or None) for each rotation of `texts`."""
    records = []
    for k, said in enumerate(chosen):
        options = texts[k:] + texts[:k]
        letters = dict(zip(options, "ABCDE", strict=False))
        record = {"index": question + k * NEXT_ROTATION, "options": options, "answer": letters[right], **fields}
        record["prediction"] = None if said is None else letters[said]
        if losses:
            record["losses"] = [losses[k][option] for option in options]
        records.append(record)
    return records


RECORDS = [
    *rotations(1, ["cat", "dog", "None"], "dog", ["dog", "dog", "dog"], category="x", **{"l2-category": "p"}),
    *rotations(2, ["cat", "dog", "None"], "cat", ["dog", "cat", "cat"], category="x", **{"l2-category": "q"}),
    *rotations(3, ["yes", "no"], "yes", ["yes", None], category="y", **{"l2-category": "q"}),
    *rotations(4, ["yes", "no"], "yes", [None, None], category="y", **{"l2-category": "q"}),
]


def test_the_three_numbers_are_shares_of_questions():
    scores = mmbench_scores(RECORDS)
    assert scores == {
        "circular": 1 / 4,  # question 1
        "vanilla": 2 / 4,  # 1 and 3
        "vote": 3 / 4,  # 1, 2 and 3: two of three, one of one
        "category": {"x": 1 / 2, "y": 0},
        "l2-category": {"p": 1, "q": 0},
        "groups": 4,
        "unmatched": 3,
    }
    shuffled = random.Random(0).sample(RECORDS, len(RECORDS))
    assert mmbench_scores(shuffled) == scores


@pytest.mark.parametrize(
    "losses, vote",
    [
        ([{"yes": 1.0, "no": 2.0}, {"yes": 2.0, "no": 1.5}], 1.0),  # yes 3.0 against 3.5
        ([{"yes": 1.5, "no": 2.0}, {"yes": 3.0, "no": 1.0}], 0.0),  # yes 4.5 against 3.0
        (None, 1.0),  # generated answers: what the first rotation said
    ],
)
def test_a_tied_vote_goes_to_the_smaller_summed_loss(losses, vote):
    assert mmbench_scores(rotations(7, ["yes", "no"], "yes", ["yes", "no"], losses))["vote"] == vote


def test_errors_name_record_and_key():
    good = rotations(1, ["yes", "no"], "yes", ["yes"])[0]
    bad = {key: value for key, value in good.items() if key != "prediction"}
    with pytest.raises(ValueError, match="record 2 has no 'prediction'"):
        mmbench_scores([good, bad])
    with pytest.raises(ValueError, match="record 1: answer is 'C', it must be one of"):
        mmbench_scores([{**good, "answer": "C"}])
    with pytest.raises(ValueError, match="record 1 has 3 losses for 2 options"):
        mmbench_scores([{**good, "losses": [1, 2, 3]}])
    with pytest.raises(ValueError, match="index 1 comes twice"):
        mmbench_scores([good, good])
    with pytest.raises(ValueError, match="no records"):
        mmbench_scores([])


def as_pair(record):
    fields = {key: record[key] for key in ("index", "category", "l2-category")}
    image = ImageSource.from_bytes(str(record["index"] % NEXT_ROTATION), b"")
    texts = tuple(record["options"])
    truth = Record(str(record["index"]), "?", (image,), (record["answer"],), texts, fields=fields)
    return Pair(truth, Answer(truth.id, "key", f"The answer is {record['prediction'] or 'unclear'}."))


def test_the_metric_reports_what_the_function_returns():
    result = MMBENCH.score([as_pair(record) for record in RECORDS])
    scores = mmbench_scores(RECORDS)
    assert result.headline == "circular"
    for rule in ("circular", "vanilla", "vote"):
        assert result.figures[rule].value == 100 * scores[rule]
        assert result.figures[rule].count == 4
    for field in ("category", "l2-category"):
        assert {name: figure.value for name, figure in result.figures.items() if name.startswith(f"{field}/")} == {
            f"{field}/{name}": 100 * value for name, value in scores[field].items()
        }
    assert sum(sample.unmatched for sample in result.samples) == 3
    assert result.notes == ()
    cut = MMBENCH.score([as_pair(record) for record in RECORDS[:1]])
    assert cut.notes == ("1 of 1 questions lack rotations: circular is too high",)
