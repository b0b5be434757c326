"""docs/reference.md lists what the parsers take."""

from pathlib import Path

from helpers.runs import script

from qwen_vl.cli import main as cli_main


def test_the_page_of_all_flags_is_what_the_parsers_say():
    reference = script("make_reference")
    text = Path(reference.PAGE).read_text(encoding="utf-8")
    assert text == reference.page(), "run python scripts/make_reference.py"
    assert all(f"\n## qwen-vl {verb}" in text for verb in cli_main.VERBS)
    assert text.count("\n| `") > 250
