"""`python -m qwen_vl.cli.random_model`: a configuration that does not exist, a vocabulary that is not installed."""

from pathlib import Path

import pytest

from qwen_vl.cli import random_model


def test_without_a_configuration_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        random_model.main([str(tmp_path / "gone.json"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_without_the_vocabulary_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(random_model, "find_spec", lambda name: None)
    config = Path(__file__).resolve().parents[2] / "configs/model/tiny.json"
    with pytest.raises(OSError, match=r'pip install "qwen-vl\[demo\]"'):
        random_model.main([str(config), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
