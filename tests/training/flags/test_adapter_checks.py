"""Wrong flags of adapters: each is a line that names the flag."""

import pytest

from qwen_vl.training.flags import adapter_checks, arguments


def problems(**changes):
    """Return the lines for the default settings with changes."""
    settings = arguments.make_parser().parse_args(["--data_path", "D", "--output_dir", "O"])
    return adapter_checks.check(type(settings)(**vars(settings) | changes))


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, []),
        ({"use_lora": True, "lora_lr": 1e-4, "use_dora": True}, []),
        ({"lora_lr": 1e-4, "use_dora": True}, ["--use_dora needs", "--lora_lr needs"]),
        ({"use_lora": True, "lora_bias": "some"}, ["--lora_bias some: use one of none, all, lora_only"]),
        ({"use_lora": True, "lora_weight_path": "A", "new_special_tokens": ["<a>"]}, ["--new_special_tokens: rows"]),
    ],
    ids=str,
)
def test_each_problem_is_a_line(changes, flags):
    found = problems(**changes)
    assert len(found) == len(flags) and all(line.startswith(flag) for line, flag in zip(found, flags, strict=True))
