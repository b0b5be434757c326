"""`qwen-vl plan`: its defaults, and counts that are not above 0."""

import pytest

from qwen_vl.cli import plan


@pytest.mark.parametrize("flag", ["--max_length", "--batch", "--accumulation", "--gpus", "--lora_r"])
def test_a_count_is_above_0(flag, capsys):
    args = plan.make_parser().parse_args([])
    assert (args.method, args.max_length, args.batch, args.gpus, args.model) == ("lora", 2048, 1, 1, None)
    with pytest.raises(SystemExit) as end:
        plan.main([flag, "0"])
    assert end.value.code == 2 and flag in capsys.readouterr().err
