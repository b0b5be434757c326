"""Fixtures: the golden checkpoint, rebuilt from its recipe, and its tokenizer."""

from pathlib import Path

import pytest
import torch

from qwen_vl.model import QWenConfig, QWenLMHeadModel, QWenTokenizer


@pytest.fixture(scope="session")
def golden_model(golden):
    """Return the model whose outputs were recorded: float32, evaluation mode."""
    import make_weights  # from the golden folder

    folder = next(path for path in (Path(make_weights.__file__).parent / "ckpt").iterdir() if path.is_dir())
    shapes = golden(f"ckpt/{folder.name}/shapes.json")
    model = QWenLMHeadModel(QWenConfig.from_pretrained(folder))
    weights = {name: torch.from_numpy(make_weights.weight(folder.name, name, shape)) for name, shape in shapes.items()}
    model.load_state_dict(weights, strict=True)
    model.generation_config = model.generation_config.from_pretrained(folder)
    return model.eval()


@pytest.fixture
def seq64_model(golden_model):
    """Return a model with the same weights and a trained length of 64."""
    published, golden_model.config.seq_length = golden_model.config.seq_length, 64
    yield golden_model.eval()
    golden_model.config.seq_length = published
    golden_model.eval()


@pytest.fixture(scope="session")
def golden_tokenizer(published_vocab):
    return QWenTokenizer(published_vocab, model_max_length=8192)
