"""`qwen-vl quantize`: all that is wrong with its arguments is one error, before a model is loaded."""

import pytest

from qwen_vl.cli import quantize


def test_all_wrong_arguments_come_in_one_error(tmp_path):
    words = ["--bits", "3", "--group_size", "0", "--damp", "1"]
    with pytest.raises(ValueError) as caught:
        quantize.main([str(tmp_path / "gone"), str(tmp_path / "out"), *words])
    assert str(caught.value) == (
        "--bits 3: only 4 bits are written; --calibration: GPTQ needs conversations, some with images; "
        "nf4 (--method nf4) needs none; --group_size and --max_samples must be at least 1, --damp between 0 and 1"
    )
