"""The limits of what requests may read, and the messages of what is beyond them."""

from pathlib import Path

import pytest

from qwen_vl.serving.media import REASONS, MediaError, MediaPolicy


@pytest.mark.parametrize("reason", REASONS)
def test_a_message_names_the_part_and_says_what_to_do(reason):
    error = MediaError(reason, 7, where="messages[0].content[1]")
    assert str(error).startswith("messages[0].content[1]: ") and "{" not in str(error) and error.reason == reason
    assert any(
        verb in str(error)
        for verb in ("use", "send", "write", "correct", "check", "try", "shrink", "encode", "convert")
    )


def test_defaults_are_safe():
    policy = MediaPolicy()
    assert policy.media_urls == "public" and policy.allowed_local_dir is None and policy.ports == (80, 443)


@pytest.mark.parametrize(
    "values, problem",
    [
        ({"media_urls": "all"}, "media_urls: 'all'; use one of public, off, any"),
        ({"max_bytes": 0}, "max_bytes: 0"),
        ({"seconds": float("inf")}, "seconds: inf"),
        ({"max_pixels": -1}, "max_pixels: -1"),
        ({"allowed_local_dir": Path("missing")}, "allowed_local_dir: missing is no folder"),
    ],
)
def test_values_without_sense(values, problem):
    with pytest.raises(ValueError, match=problem):
        MediaPolicy(**values)
