"""An opened model folder: the facts about a checkpoint, read once and passed on as a value."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import GenerationConfig

from qwen_vl.families import v1 as family
from qwen_vl.model import QWenConfig
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import files, loading, quantization
from .tensors import Weights


@dataclass(frozen=True)
class ModelFolder:
    """A model folder, an adapter folder or a hub name. Each property is read when it is first used, and then kept.

    It can be passed wherever a path is expected. Its values are shared, so copy a config before changing it.
    """

    path: str
    cache_dir: str | None = None

    @classmethod
    def open(cls, path: "str | os.PathLike[str] | ModelFolder", cache_dir: str | None = None) -> "ModelFolder":
        """Return the ModelFolder of a folder or a hub name, or the given one if it is open already.

        Raise FileNotFoundError if `path` is neither a folder nor a hub name.
        """
        if isinstance(path, ModelFolder):
            return path
        files.local_folder(path, cache_dir=cache_dir)
        return cls(str(path), cache_dir)

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file in the folder, None if there is none; raise ValueError if damaged."""
        return files.read_json(self.path, name, self.cache_dir)

    @cached_property
    def is_adapter(self) -> bool:
        """Return whether the folder, which may be on a hub, holds an adapter and not a whole model."""
        return files.find_file(self.path, files.ADAPTER_CONFIG, self.cache_dir) is not None

    @cached_property
    def config(self) -> QWenConfig:
        """Return the configuration; raise ValueError for another architecture or an adapter."""
        return loading.load_config(self.path, self.cache_dir)

    @cached_property
    def quantization(self) -> str | None:
        """Return the kind of quantization of the stored weights ("gptq", "nf4", "int8"), None for float weights."""
        return quantization.kind_of(self.config, self.path)

    @cached_property
    def generation_config(self) -> GenerationConfig | None:
        """Return the settings for generation, None if the folder has none."""
        settings = self.read_json("generation_config.json")
        return None if settings is None else GenerationConfig.from_dict(settings)

    @cached_property
    def is_chat(self) -> bool:
        """Return whether the generation config of the folder is that of a chat model."""
        return family.is_chat(self.read_json("generation_config.json") or {})

    @cached_property
    def tokenizer(self) -> QWenTokenizer:
        """Return the tokenizer, checked to fit the configuration."""
        return loading.load_tokenizer(self.path, self.config, self.cache_dir)

    @cached_property
    def tensors(self) -> Weights:
        """Return the weights as float tensors by name, read from disk one at a time."""
        return Weights(self.path, self.cache_dir)

    @cached_property
    def fingerprint(self) -> str:
        """Return the hex digest that identifies the weights, the same however they are sharded."""
        return loading.fingerprint(self.path, self.cache_dir)
