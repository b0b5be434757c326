"""Own conversations: each record is scored by what its right answer is."""

import random

import pytest
from helpers.answered import pair

from qwen_vl.evaluation.metrics import score_sample, short_agree, task_of
from qwen_vl.evaluation.metrics.free_text import score_texts
from qwen_vl.evaluation.metrics.own_data import OWN_DATA, check_records, score_records
from qwen_vl.evaluation.metrics.own_tasks import yes_or_no
from qwen_vl.evaluation.records import Record

DOG, CAT = "<ref>dog</ref><box>(0,0),(100,100)</box>", "<ref>cat</ref><box>(500,500),(600,600)</box>"
LONG = "there is a small red circle on the left of a large blue square"


def values_of(result):
    return {name: figure.value for name, figure in result.figures.items()}


@pytest.mark.parametrize(
    "answers, metric, wanted",
    [
        ([DOG], None, "boxes"),
        (["Yes."], None, "yes_no"),
        (["否"], None, "yes_no"),
        (["没有。"], None, "yes_no"),
        (["Yes, a dog"], None, "short"),
        (["红色"], None, "short"),
        ([""], None, "short"),
        ([LONG], None, "text"),
        (["a dog", "the dog"], None, "text"),
        (["a dog", "the dog"], "anls", "short"),
        ([LONG], "relaxed_accuracy", "short"),
        (["yes"], "exact_match", "short"),
        (["no, there is none"], "yes_no", "yes_no"),
        (["none"], "boxes", "boxes"),
        (["red"], "text", "text"),
    ],
)
def test_the_task_follows_from_the_answer_or_is_named(answers, metric, wanted):
    assert task_of(pair("", answers, metric=metric).record) == wanted


def test_records_that_cannot_be_scored_are_named():
    with pytest.raises(ValueError, match="record '0': metric is 'iou', it must be one of boxes, yes_no"):
        check_records([pair("", ["red"], metric="iou").record])
    with pytest.raises(ValueError, match="record '0' has no right answer"):
        check_records([pair("", []).record])
    with pytest.raises(ValueError, match="record '0': metric is yes_no, but its answer 'red' is neither"):
        score_sample(pair("", ["red"], metric="yes_no").record, "yes")
    with pytest.raises(ValueError, match="Own data: 1 records have no right answer"):
        OWN_DATA.score([pair("", [])])


def test_boxes_are_matched_one_to_one():
    pairs = [
        pair(CAT + DOG, [DOG + CAT], id="0", image="0"),
        pair("<box>(0,0),(100,60)</box>" * 2, [DOG + CAT], id="1", image="1"),
        pair("a dog", [DOG], id="2", image="2"),
        pair("<box>(0,0),(100,35)</box>", [DOG], id="3", image="3"),
    ]
    result = OWN_DATA.score(pairs)
    assert result.headline == "boxes_f1"
    assert values_of(result) == pytest.approx(
        {
            "score": 100 * (1 + 0.5 + 0 + 0) / 4,
            "boxes_f1": 100 * 2 * 3 / (6 + 5),
            "boxes_precision": 100 * 3 / 5,
            "boxes_recall": 100 * 3 / 6,
            "boxes_at_0.3": 100 * 4 / 6,
            "boxes_at_0.5": 100 * 3 / 6,
            "boxes_at_0.7": 100 * 2 / 6,
            "boxes_mean_iou": 100 * (1 + 1 + 0.6 + 0.35) / 6,
            "boxes_first_at_0.5": 25,  # of the first record the first boxes are those of cat and dog
            "boxes_without": 25,
        }
    )
    assert [sample.unmatched for sample in result.samples] == [False, False, True, False]
    assert result.samples[0].extra["boxes_in_grid"] == {
        "right": [[0, 0, 100, 100], [500, 500, 600, 600]],
        "predicted": [[500, 500, 600, 600], [0, 0, 100, 100]],
    }


def test_nothing_to_find_is_right_if_nothing_is_found():
    record = pair("", ["there is none"], metric="boxes").record
    assert score_sample(record, "no dog here").score == 1
    assert score_sample(record, DOG).score == 0
    figures = score_records([record], [DOG]).figures
    assert figures["boxes_precision"].value == figures["boxes_f1"].value == 0
    assert "boxes_first_at_0.5" not in figures  # there is no first right box


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("Yes, there is no doubt", "yes"),
        ("no", "no"),
        ("There is no dog", "no"),
        ("是的，有一只狗", "yes"),
        ("没有", "no"),
        ("不是", "no"),
        ("不知道", "unknown"),
        ("yesterday", "unknown"),
        ("“有”", "yes"),
        ("", "unknown"),
    ],
)
def test_yes_and_no_are_read_in_english_and_chinese(text, wanted):
    assert yes_or_no(text) == wanted


def test_yes_no_figures():
    said = [("yes", "Yes."), ("是", "否"), ("no", "yes"), ("no", "maybe")]
    values = values_of(OWN_DATA.score([pair(text, [truth], id=str(i)) for i, (truth, text) in enumerate(said)]))
    assert values == pytest.approx(
        {
            "score": 25,
            "yes_no_accuracy": 25,
            "yes_no_precision": 50,
            "yes_no_recall": 50,
            "yes_no_f1": 50,
            "yes_no_agree": 25,
            "yes_no_unmatched": 25,
        }
    )


def test_short_answers_have_four_figures_and_the_named_one_is_their_score():
    pairs = [
        pair("Red.", ["red"], id="0", category="color"),
        pair("104", ["100"], id="1", metric="relaxed_accuracy", category="number"),
        pair("Coca cola", ["Coca Cola Company", "Coca Cola"], id="2", metric="anls", category="brand"),
    ]
    result = OWN_DATA.score(pairs)
    assert [sample.score for sample in result.samples] == [0, 1, 1]  # exact match is strict about the period
    assert values_of(result) == pytest.approx(
        {
            "score": 200 / 3,
            "short_exact_match": 100 / 3,
            "short_anls": 100 * (0.75 + 2 / 3 + 1) / 3,
            "short_relaxed_accuracy": 200 / 3,
            "short_agree": 200 / 3,
            "category/brand": 100,
            "category/color": 0,
            "category/number": 100,
            "category/brand agree": 100,
            "category/color agree": 100,
            "category/number agree": 0,
        }
    )
    assert short_agree("ＲＥＤ。", ["blue", "red"]) == 1


def test_tasks_are_scored_side_by_side_in_any_order():
    records = [[DOG], ["yes"], ["red"], [LONG], ["a dog runs", "the dog is running"]]
    pairs = [pair(answers[-1], answers, id=str(i), image=str(i)) for i, answers in enumerate(records)]
    result = OWN_DATA.score(pairs)
    assert result.headline == "score"
    for name in ("score", "boxes_f1", "yes_no_f1", "short_anls", "text_rouge_l", "text_bleu"):
        assert result.figures[name].value == pytest.approx(100), name
    assert result.figures["text_cider"].value > 0
    assert [figure.standard_error for name, figure in result.figures.items() if name == "text_bleu"] == [None]
    assert any(note.startswith("text_bleu: sacrebleu nrefs:var") for note in result.notes)
    shuffled = values_of(OWN_DATA.score(random.Random(0).sample(pairs, len(pairs))))
    assert shuffled == pytest.approx(values_of(result))
    boxes = values_of(OWN_DATA.score([pair(DOG, [DOG], category=["box", "en"])]))
    assert boxes["category/box first_at_0.5"] == boxes["category/en"] == 100
    empty = values_of(OWN_DATA.score([pair("", one.record.answers, id=one.record.id) for one in pairs]))
    for name, value in empty.items():
        assert value == (100 if name in ("boxes_without", "yes_no_unmatched") else 0), name


def test_all_records_that_cannot_be_scored_are_told_at_once():
    def of(id, **fields):
        return Record(id, "?", (), ("a",), fields=fields)

    with pytest.raises(ValueError, match=r"^record 'x': metric is 'accuracy'.*\nrecord 'z': metric is yes_no, but"):
        check_records([of("x", metric="accuracy"), of("y"), of("z", metric="yes_no")])


def test_long_answers_of_a_subset_weigh_words_as_the_whole_file_does():
    texts = [f"a small {color} circle is on the left side of a large square {n}" for n, color in enumerate("rgbrgb")]
    pairs = [pair(text.replace("small", "tiny"), [text], id=str(n)) for n, text in enumerate(texts)]
    pairs += [pair("yes", ["yes"], id="short")]
    whole = [one.record for one in pairs]
    complete, part = OWN_DATA.score(pairs, whole), OWN_DATA.score(pairs[:1], whole)
    everything = score_texts([one.answer.text for one in pairs[:6]], [[text] for text in texts]).ciders
    assert values_of(complete)["text_cider"] == pytest.approx(sum(everything) / 6)
    assert values_of(part)["text_cider"] == pytest.approx(everything[0]) and everything[0] > 0
    assert "all 6 long answers" in part.notes[-1]
