"""Fixtures of the tests of readers."""

import json

import datasets
import pytest


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def hf_json(tmp_path):
    """Return a function that loads records as `datasets` loads a JSON file of them."""

    def load_json(records):
        (tmp_path / "for_hf.json").write_text(json.dumps(records))
        return datasets.load_dataset("json", data_files=str(tmp_path / "for_hf.json"), split="train",
                                     cache_dir=str(tmp_path / "hf"))  # fmt: skip

    return load_json
