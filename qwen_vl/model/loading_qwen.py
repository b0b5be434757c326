"""Loading beyond transformers: arguments of the original loader, and adapters that were trained in ChatML."""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_qwen import taken_wishes, with_wishes

Mixin: Any = object  # for mypy: the model that a class is mixed into has more members
TRAINED_FORMAT = "chatml"  # of every adapter, here and in the original, whatever the format of its base


class LoadingMixin(Mixin):
    """A mixin whose `from_pretrained` and `from_config` take the original's `bf16`, `fp16` and `fp32`.

    Once PEFT has put an adapter into the model, it chats in ChatML.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *model_args: Any, **kwargs: Any) -> PreTrainedModel:
        """Return the model as transformers does. `bf16=True` means dtype=torch.bfloat16, and so on; `dtype` wins.

        Raise ValueError for two precisions at once.
        """
        kwargs.pop("resume_download", None)  # the original's demos pass it, but downloads always resume now
        config = kwargs.get("config")
        if isinstance(config, PreTrainedConfig):  # without one, QWenConfig.from_dict gets the arguments
            kwargs["config"] = with_wishes(config, taken_wishes(kwargs))
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
        """Return a model with random weights, for `from_config` of the Auto classes; arguments as above."""
        return super()._from_config(with_wishes(config, taken_wishes(kwargs)), **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # PEFT sets this on a model that it puts an adapter into, and deletes it after merging.
        if name == "peft_config" and self.can_generate():
            self.generation_config.chat_format = TRAINED_FORMAT
