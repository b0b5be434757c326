"""`qwen-vl export`: options for an adapter are an error for anything else."""

import pytest

from qwen_vl.cli import export


def test_options_for_an_adapter_need_an_adapter(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"^--base, --dequantize: for an adapter, which .*model is not$"):
        export.main([str(tmp_path / "model"), str(tmp_path / "out"), "--dequantize", "--base", "x"])
    assert not (tmp_path / "out").exists()
