"""Names on hubs: prefixes, revisions, flags and the variable of the environment."""

import pytest

from qwen_vl.hubs import names


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Qwen/Qwen-VL-Chat", ("huggingface", "Qwen/Qwen-VL-Chat", None)),
        ("Qwen/Qwen-VL-Chat@v1.0", ("huggingface", "Qwen/Qwen-VL-Chat", "v1.0")),
        ("ms:qwen/Qwen-VL@refs/pr/3", ("modelscope", "qwen/Qwen-VL", "refs/pr/3")),
    ],
)
def test_a_name_has_a_hub_and_a_revision_and_is_written_as_it_is_read(text, expected):
    found = names.parse(text)
    assert tuple(found) == expected and str(found) == text


def test_the_environment_names_the_hub_of_names_without_a_prefix(monkeypatch):
    monkeypatch.setenv(names.VARIABLE, "modelscope")
    assert names.parse("a/b").hub == "modelscope"
    assert names.full("hf:a/b") == "hf:a/b" and names.full("a/b") == "ms:a/b"
    monkeypatch.setenv(names.VARIABLE, "github")
    with pytest.raises(ValueError, match="QWEN_VL_HUB=github: no hub that is known here; use huggingface or modelsc"):
        names.parse("a/b")


def test_flags_complete_a_name_and_never_change_what_it_says(tmp_path):
    assert names.full("a/b", hub="modelscope", revision="v1") == "ms:a/b@v1"
    assert names.full("hf:a/b", hub="modelscope") == "a/b"
    assert names.full("a/b@v1", revision="v1") == "a/b@v1"
    assert names.full(str(tmp_path), hub="modelscope") == str(tmp_path)
    with pytest.raises(ValueError, match="--revision v2: a/b@v1 names another one"):
        names.full("a/b@v1", revision="v2")
    with pytest.raises(ValueError, match=r"--revision v2: goes with the name of a model on a hub, which .* is not"):
        names.full(str(tmp_path), revision="v2")
    with pytest.raises(ValueError, match="--hub github: no hub that is known here"):
        names.full("a/b", hub="github")
