"""`python -m qwen_vl.cli.random_model`: a configuration that does not exist."""

import pytest

from qwen_vl.cli import random_model


def test_without_a_configuration_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        random_model.main([str(tmp_path / "gone.json"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
