"""Long answers: BLEU and ROUGE-L of their libraries, with tokens that know Chinese."""

import sys

import pytest

from qwen_vl.evaluation.metrics import free_text


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    assert free_text.rouge_l("the cat sat", ["the cat sat on the mat"]) == pytest.approx(2 / 3)  # P 1, R 1/2
    assert free_text.rouge_l("The CAT", ["a dog", "the cat"]) == 1  # the best reference, case apart
    assert free_text.rouge_l("一只红色的狗", ["一只狗"]) == pytest.approx(2 * 0.5 / 1.5)  # characters
    assert free_text.rouge_l("", ["the cat"]) == 0


def test_bleu_takes_any_number_of_references():
    texts = ["the cat sat on the mat", "a small dog runs"]
    scores = free_text.score_texts(texts, [[texts[0], "a cat sits"], [texts[1]]])
    assert scores.bleu == pytest.approx(100)
    assert scores.signature.startswith("nrefs:var|case:mixed|eff:no|tok:zh|smooth:exp|version:")
    assert len(scores.ciders) == 2
    assert free_text.score_texts(["", ""], [["a"], ["b"]]).bleu == 0
    chinese = free_text.score_texts(["图中有一只猫", "红色的圆形"], [["图中有一只狗"], ["红色的圆形"]])
    assert chinese.bleu > 50 and chinese.ciders[1] > chinese.ciders[0] > 0  # shared characters count


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("red", False),
        ("one two three four five six seven eight nine ten", False),
        ("one two three four five six seven eight nine ten eleven", True),
        ("红" * 20, False),
        ("红" * 21, True),
        ("", False),
    ],
)
def test_more_than_ten_words_are_long(text, wanted):
    assert free_text.is_long(text) is wanted


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr(free_text, "find_spec", lambda name: None if name == "sacrebleu" else name)
    with pytest.raises(ValueError, match=r"need sacrebleu: pip install 'qwen-vl\[eval\]'"):
        free_text.score_texts(["a"], [["a"]])
