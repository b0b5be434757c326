"""Suggestions for misspelled flags and keys."""

import pytest

from qwen_vl.training.flags import arguments, spelling


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--lora_rr", " (did you mean --lora_r?)"),
        ("--lora-r=8", " (write --lora_r)"),
        ("\u2014LORA_R", " (write --lora_r)"),
        ("--colorless_green", ""),
    ],
)
def test_suggestions(word, expected):
    assert spelling.suggestion(word, arguments.make_parser()._option_string_actions, mark="--") == expected


@pytest.mark.parametrize(("word", "expected"), [("--x", True), ("\u2013x", True), ("x=1", True), ("x", False)])
def test_words_that_are_meant_as_flags(word, expected):
    assert spelling.is_flag(word) == expected
