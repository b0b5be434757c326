"""`qwen-vl merge`: a folder that is no adapter."""

import pytest

from qwen_vl.cli import merge


def test_a_folder_without_adapter_is_an_error_and_nothing_is_written(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        merge.main([str(tmp_path / "model"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
