"""Options: letters read from free answers, ScienceQA's breakdowns, SEED-Bench's dimensions, MMMU's open questions."""

import random
from dataclasses import replace

import pytest
from helpers.answered import pair

from qwen_vl.evaluation.metrics import option_letter
from qwen_vl.evaluation.metrics.choice import CHOICE, SEED_BENCH, SEED_DIMENSIONS
from qwen_vl.evaluation.metrics.result import Pair
from qwen_vl.evaluation.records import Answer, ImageSource, Record

OPTIONS = ("a red apple", "dog", "None", "NA")


def ranked(choice, answers, *, id="0", options=OPTIONS, images=("i",), hint="", **fields):
    sources = tuple(ImageSource.from_bytes(name, b"") for name in images)
    record = Record(id, "what?", sources, tuple(answers), tuple(options), hint, fields=fields)
    return Pair(record, Answer(id, "key", losses=(1.0,) * len(options), choice=choice, finish="rank"))


@pytest.mark.parametrize(
    "answer, wanted",
    [
        ("B", "B"),
        (" (b) ", "B"),
        ("B.", "B"),
        ("B:", "B"),
        ("B)", "B"),
        ("[D]", "D"),
        ("（C）", "C"),
        ("E", None),  # no such option
        ("The answer is C, not B.", "C"),
        ("The answer is (b).", "B"),
        ("the correct answer is: D", "D"),
        ("答案是B", "B"),
        ("The answer is a cat", None),
        ("I choose B because of its ears", "B"),
        ("B. dog", "B"),
        ("选B，因为是狗", "B"),
        ("B or C", None),
        ("A cat", None),  # an article
        ("A dog", "B"),  # an article again: its text names the option
        ("A. cat", "A"),
        ("A is right", "A"),
        ("A B-movie and a T-shirt, D'Arcy", None),
        ("It shows a DOG.", "B"),
        ("none", "C"),
        ("neither nor", None),
        ("", None),
    ],
)
def test_a_letter_is_read_and_never_guessed(answer, wanted):
    assert option_letter(answer, OPTIONS) == wanted


def test_one_options_text_may_be_part_of_another():
    assert option_letter("10", ("1", "10")) == "B"
    assert option_letter("it is 10", ("1", "10")) is None  # both are contained
    assert option_letter("anything", ("", " ")) is None  # an empty option is named by nothing


def test_ranked_and_generated_answers_are_scored_alike():
    for answers in (("B",), ("dog",)):  # the letter, or the text, of the right option
        right = ranked(1, answers, id="1")
        said = Pair(right.record, Answer("1", "key", "The answer is B."))
        lost = Pair(replace(right.record, id="2"), Answer("2", "key", "who knows"))
        for one in (right, said):
            result = CHOICE.score([one, lost])
            assert [sample.score for sample in result.samples] == [1, 0]
            assert [sample.scored for sample in result.samples] == ["B", ""]
            assert {name: figure.value for name, figure in result.figures.items()} == {"accuracy": 50, "unmatched": 50}
    assert result.notes == ("answers: generated, the letter read from the text",)
    with pytest.raises(ValueError, match=r"record '3': its answer 'E' is neither a letter of its 4 options"):
        CHOICE.score([ranked(0, ("E",), id="3")])


def test_scienceqa_by_subject_context_grade_and_topic():
    science = {"subject": "natural science", "topic": "biology"}
    pairs = [
        ranked(0, ("A",), id="0", grade="grade3", hint="text", **science),
        ranked(0, ("B",), id="1", grade="grade7", hint="N/A", **science),
        ranked(0, ("A",), id="2", grade="grade12", images=(), subject="language science", topic="grammar"),
    ]
    values = {name: figure.value for name, figure in CHOICE.score(pairs).figures.items()}
    assert values == pytest.approx(
        {
            "accuracy": 200 / 3,
            "unmatched": 0,
            "subject/language science": 100,
            "subject/natural science": 50,
            "topic/biology": 50,
            "topic/grammar": 100,
            "grade/1-6": 100,
            "grade/7-12": 50,
            "context/text": 100,
            "context/image": 50,
            "context/none": 100,
        }
    )


@pytest.mark.parametrize(
    "said, accepted, right",
    [
        (" 1,234.", ("1234",), 1),
        ("0.333", ("1/3", "0.33"), 1),
        ("Paris.", ("paris",), 1),
        ("12", ("13",), 0),
        ("-0", ("0",), 1),
        ("", ("x",), 0),
    ],
)
def test_open_questions_compare_texts_and_rounded_numbers(said, accepted, right):
    pairs = [pair(said, accepted), ranked(0, ("A",), id="1", category="Art")]
    figures = CHOICE.score(pairs).figures
    assert figures["form/open"].value == 100 * right
    assert figures["form/options"].value == figures["category/Art"].value == 100


def test_seed_bench_means_are_over_questions():
    pairs = [
        ranked(
            0, ("A",), id=str(i), images=(f"i{i}",), question_type_id=kind, data_type="image" if kind < 10 else "video"
        )
        for i, kind in enumerate([1, 1, 1, 9, 10, 12])
    ]
    pairs[0] = ranked(2, ("A",), id="wrong", question_type_id=1, data_type="image")
    pairs[5] = ranked(2, ("A",), id="wrong, too", question_type_id=12, data_type="video")
    result = SEED_BENCH.score(pairs)
    values = {name: figure.value for name, figure in result.figures.items()}
    assert list(values)[:3] == ["all", "image", "video"]
    assert values["all"] == pytest.approx(400 / 6)
    assert (values["image"], values["video"]) == (75, 50)
    assert values[SEED_DIMENSIONS[0]] == pytest.approx(200 / 3)
    assert [name for name in values if name.startswith("dimension/")] == [SEED_DIMENSIONS[i] for i in (0, 8, 9, 11)]
    assert len(SEED_DIMENSIONS) == 12
    random.Random(1).shuffle(pairs)
    assert SEED_BENCH.score(pairs).figures == result.figures
    with pytest.raises(ValueError, match="question_type_id is 13"):
        SEED_BENCH.score([ranked(0, ("A",), question_type_id=13, data_type="image")])
    without = SEED_BENCH.score([ranked(0, ("A",), data_type="image")])
    assert list(without.figures) == ["all", "image", "unmatched"]


def test_a_test_split_is_refused():
    with pytest.raises(ValueError, match="2 records have no right answer"):
        CHOICE.score([ranked(0, ()), ranked(0, (), id="1")])
