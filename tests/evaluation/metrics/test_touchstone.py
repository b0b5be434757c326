"""TouchStone: the prompt to the character, both orders, categories, and rounds that cannot be read."""

import pytest

from qwen_vl.evaluation.metrics.result import Pair
from qwen_vl.evaluation.metrics.touchstone import TOUCHSTONE, messages, ratings, touchstone
from qwen_vl.evaluation.records import Answer, ImageSource, Record

PROMPT = """[Detailed Image Description]
D

[Question]
Q

[The Start of Assistant 1's Answer]
A1

[The End of Assistant 1's Answer]

[The Start of Assistant 2's Answer]
A2

[The End of Assistant 2's Answer]

[System]
We would like to request your feedback on the performance of two AI assistants in response to the user question and \
image description displayed above. AI assistants are provided with detailed image description and questions.
Please rate the helpfulness, relevance, accuracy, comprehensiveness of their responses. Each assistant receives an \
overall score on a scale of 1 to 10, where a higher score indicates better overall performance.
Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, \
respectively. The two scores are separated by a space. In the subsequent line, please provide a comprehensive \
explanation of your evaluation, avoiding any potential bias and ensuring that the order in which the responses were \
presented does not affect your judgment.

"""


def pair(id, category, text="mine", image="x"):
    fields = {"human_annotation": "D", "gpt4_ha_answer": "theirs", "category": category}
    image = ImageSource.from_bytes(image, b"")
    return Pair(Record(id, f"Q{id}", (image,), fields=fields), Answer(id, "k", text=text))


def test_the_prompt():
    system, user = messages("D", "Q", "A1", "A2")
    assert system == {
        "role": "system",
        "content": "You are a helpful and precise assistant for checking the quality of the answer.",
    }
    assert user == {"role": "user", "content": PROMPT} and user["content"].endswith("judgment.\n\n")


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("8 9", (8, 9)),
        ("8.5 10\nAssistant 2 is 3 times better", (8.5, 10)),
        ("\n7, 6", (7, 6)),
        ("8", None),
        ("8 9 10", None),
        ("Assistant 1: 8 9", None),
        ("80 90", None),
        ("nan 9", None),
        ("", None),
    ],
)
def test_the_first_line_has_two_numbers(reply, expected):
    assert ratings(reply) == expected


def test_both_orders_count_and_what_cannot_be_read_is_counted_apart():
    pairs = [pair("1", "a, b"), pair("2", "b", image="y"), pair("3", "c", image="z")]
    replies = ["8 2", "3 6", "10 1", "I cannot say", "no", "no"]
    asked = []

    def ask(conversations):
        asked.extend(conversation[1]["content"] for conversation in conversations)
        return replies

    result = TOUCHSTONE.score(pairs, ask)
    assert TOUCHSTONE.needs_judge and len(asked) == 6
    assert "1's Answer]\nmine\n" in asked[0] and "2's Answer]\ntheirs\n" in asked[0]
    assert "1's Answer]\ntheirs\n" in asked[1] and "2's Answer]\nmine\n" in asked[1]
    figures = {name: (figure.value, figure.count, figure.unit) for name, figure in result.figures.items()}
    assert result.headline == "score" and figures == {
        "score": (800, 2, "points"),  # 8, 6 and 10
        "category/a": (700, 1, "points"),
        "category/b": (800, 2, "points"),
    }
    assert [(sample.score, sample.unmatched) for sample in result.samples] == [(0.7, False), (1.0, False), (0, True)]
    assert result.notes == ("3 of 6 rounds were rated; 1 records have no rating",)
    assert result.figures["score"].standard_error == pytest.approx(((-200) ** 2 + 200**2) ** 0.5 / 3)


def test_a_judge_that_rates_nothing_is_no_judge():
    with pytest.raises(ValueError, match="no two numbers"):
        touchstone([pair("1", "a")], lambda conversations: ["sorry"] * len(conversations))
