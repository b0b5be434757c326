"""The closed layer: everything in here ships inside every saved checkpoint."""

from transformers import AutoConfig, AutoModelForCausalLM

from .configuration_qwen import QWenConfig
from .modeling_qwen import QWenLMHeadModel

AutoConfig.register(QWenConfig.model_type, QWenConfig, exist_ok=True)
AutoModelForCausalLM.register(QWenConfig, QWenLMHeadModel, exist_ok=True)

__all__ = ["QWenConfig", "QWenLMHeadModel"]
