"""New adapters on a model, and adapters of a folder attached to it."""

from collections.abc import Sequence
from typing import TypeVar

from peft import LoraConfig, NoMatchingPeftModuleError, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from torch import nn

from qwen_vl.checkpoint.quantization import quiet_gptqmodel
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel

from . import lora_targets
from .adapter import Adapter
from .options import LoraOptions

Model = TypeVar("Model", bound=nn.Module)


def freeze_fixed_table(model: Model) -> Model:
    """Freeze the resampler's position table, also in copies that adapters made of it, and return the model.

    Where PEFT unfreezes it, that rule does not fit this model. Other parameters stay as PEFT leaves them: with
    `bias="all"` the resampler's `in_proj_bias` is frozen, because it would not be saved.
    """
    for name, parameter in model.named_parameters():
        if without_wrappers(name).endswith(family.FIXED_TABLE):
            parameter.requires_grad_(False)
    return model


def whole_modules(model: QWenLMHeadModel, requested: Sequence[str] | None = None) -> list[str] | None:
    """Return the names of modules that train whole next to adapters: those requested, or the default.

    The default is wte and lm_head on a base model, and nothing on a chat model.

    A base model, by its generation_config.chat_format, has never seen the ChatML markers
    (docs/checkpoint_format.md section 7).
    """
    if requested:
        return None if requested == ["none"] else list(requested)
    return None if family.is_chat(model.generation_config.to_dict()) else list(family.WHOLE_ON_A_BASE)


def add_adapters(model: QWenLMHeadModel, options: LoraOptions) -> PeftModel:
    """Return a PeftModel with new LoRA adapters. Raise ValueError for a target or module that is not in the model."""
    whole = options.modules_to_save or ()
    lora_targets.check_names(model, options.targets, whole)
    rows = lora_targets.trained_rows(options.new_tokens, whole)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=lora_targets.target_modules(model, options.targets),
        bias=options.bias,
        modules_to_save=lora_targets.modules_to_save(model, options.modules_to_save),
        trainable_token_indices=rows or None,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        init_lora_weights=options.init_lora_weights,
    )
    quiet_gptqmodel()  # which peft imports for any adapter
    try:
        return freeze_fixed_table(get_peft_model(model, config))
    except NoMatchingPeftModuleError as error:
        raise ValueError(
            f"--lora_target_modules {' '.join(options.targets)}: all of them lie in what trains whole "
            f"(--modules_to_save {' '.join(whole)}), so that nothing is left for adapters; choose other targets, or "
            "train without --use_lora"
        ) from error


def load_adapters(
    model: QWenLMHeadModel | PeftModel,
    adapter: Adapter,
    *,
    trainable: bool = False,
    name: str = "default",
) -> PeftModel:
    """Return a PeftModel with an adapter, which PEFT calls `name`; a PeftModel keeps those that it has.

    Raise ValueError if it is damaged or does not fit the model.
    """
    quiet_gptqmodel()  # which peft imports for any adapter
    try:
        if isinstance(model, PeftModel):
            adapted = model
            adapted.load_adapter(str(adapter.folder), adapter_name=name, is_trainable=trainable)
        else:
            adapted = PeftModel.from_pretrained(model, str(adapter.folder), adapter_name=name, is_trainable=trainable)
    except (RuntimeError, SafetensorError) as error:
        raise adapter.misfit(error) from error
    return freeze_fixed_table(adapted) if trainable else adapted


def without_wrappers(name: str) -> str:
    """Return the name that a parameter has in the model without adapters."""
    for wrapper in ("base_model.model.", ".modules_to_save.default", ".original_module"):
        name = name.replace(wrapper, "")
    return name
