"""`qwen-vl data check`: wrong arguments change nothing."""

import pytest
from helpers.checks import check, record


@pytest.mark.parametrize(
    "argv",
    [
        ["{a}", "{b}", "--fix", "out.json"],
        ["{a}", "--fix", "{a}"],
        ["{a}", "--report", "{a}"],
        ["{a}", "--workers", "0"],
        ["{a}", "--imagefolder", "x"],
        [],
    ],
)
def test_wrong_arguments_exit_with_2(argv, write):
    paths = {"a": write([record("a")], "a.json"), "b": write([record("b")], "b.json")}
    before = paths["a"].read_bytes()
    with pytest.raises(SystemExit, match="2"):
        check(*[word.format(**paths) for word in argv])
    assert paths["a"].read_bytes() == before


def test_a_folder_without_vocabulary_is_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no qwen\.tiktoken"):
        check(write([record("a")]), "--model", tmp_path)
