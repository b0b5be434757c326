"""The closed layer: every saved checkpoint contains a copy of these files."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from .configuration_qwen import QWenConfig
from .image_processing_qwen import QWenImageProcessor
from .modeling_qwen import QWenLMHeadModel, QWenModel
from .processing_qwen import QWenProcessor
from .tokenization_qwen import QWenTokenizer


class _TokenizerKey(QWenConfig):
    """The key that registers QWenTokenizer by name; with QWenConfig as the key, code in a checkpoint would run."""


AutoConfig.register(QWenConfig.model_type, QWenConfig, exist_ok=True)
AutoModel.register(QWenConfig, QWenModel, exist_ok=True)
AutoModelForCausalLM.register(QWenConfig, QWenLMHeadModel, exist_ok=True)
AutoModelForImageTextToText.register(QWenConfig, QWenLMHeadModel, exist_ok=True)
AutoImageProcessor.register(QWenConfig, image_processor_classes={"pil": QWenImageProcessor}, exist_ok=True)
AutoProcessor.register(QWenConfig, QWenProcessor, exist_ok=True)
AutoTokenizer.register(_TokenizerKey, tokenizer_class=QWenTokenizer, exist_ok=True)

__all__ = ["QWenConfig", "QWenImageProcessor", "QWenLMHeadModel", "QWenProcessor", "QWenTokenizer"]
