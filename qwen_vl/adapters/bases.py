"""Single questions about the folder of an adapter or its base. `adapter.Adapter` answers them all, opened once."""

from pathlib import Path

from transformers import GenerationConfig

from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from .adapter import BASE_FILE, Adapter, Base, is_adapter

__all__ = ["BASE_FILE", "check_base", "find_base", "generation_of", "is_adapter", "load_tokenizer", "recorded_base"]


def recorded_base(adapter_dir: str | Path) -> Base | None:
    """Return `Adapter.base` of a folder. Raise FileNotFoundError if it holds no adapter."""
    return Adapter.open(adapter_dir).base


def find_base(adapter_dir: str | Path, base: str | Path | None = None, trust_base: bool = False) -> ModelFolder:
    """Return `Adapter.find_base` of a folder."""
    return Adapter.open(adapter_dir).find_base(base, trust=trust_base)


def load_tokenizer(
    adapter_dir: str | Path, base: str | Path, config: QWenConfig | None = None, cache_dir: str | None = None
) -> QWenTokenizer:
    """Return `Adapter.load_tokenizer` of a folder; of a folder that holds a model, its own."""
    if not is_adapter(adapter_dir):
        return loading.load_tokenizer(str(adapter_dir), config, cache_dir)
    return Adapter.open(adapter_dir).load_tokenizer(base, config, cache_dir)


def check_base(adapter_dir: str | Path, name: str, fingerprint: str) -> None:
    """Raise ValueError if an adapter was trained on other weights than those of `name`."""
    Adapter.open(adapter_dir).check_base(name, fingerprint)


def generation_of(path: str | Path, model: QWenLMHeadModel) -> GenerationConfig:
    """Return the GenerationConfig in a checkpoint's folder, or else the one that the model has."""
    settings = loading.read_json(path, "generation_config.json")
    return model.generation_config if settings is None else GenerationConfig.from_dict(settings)
