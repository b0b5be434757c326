"""The closed layer: everything in here ships inside every saved checkpoint."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from .configuration_qwen import QWenConfig
from .image_processing_qwen import QWenImageProcessor
from .modeling_qwen import QWenLMHeadModel
from .processing_qwen import QWenProcessor
from .tokenization_qwen import QWenTokenizer


class _TokenizerKey(QWenConfig):
    """Makes QWenTokenizer known by name; under QWenConfig itself the foreign code of a checkpoint would run."""


AutoConfig.register(QWenConfig.model_type, QWenConfig, exist_ok=True)
AutoModelForCausalLM.register(QWenConfig, QWenLMHeadModel, exist_ok=True)
AutoImageProcessor.register(QWenConfig, image_processor_classes={"pil": QWenImageProcessor}, exist_ok=True)
AutoProcessor.register(QWenConfig, QWenProcessor, exist_ok=True)
AutoTokenizer.register(_TokenizerKey, tokenizer_class=QWenTokenizer, exist_ok=True)

__all__ = ["QWenConfig", "QWenImageProcessor", "QWenLMHeadModel", "QWenProcessor", "QWenTokenizer"]
