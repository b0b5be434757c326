"""New adapters on a model, and adapters of a folder attached to it."""

from peft import LoraConfig, NoMatchingPeftModuleError, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError

from qwen_vl.checkpoint.quantization import quiet_gptqmodel
from qwen_vl.families import v1 as family

from . import lora_targets


def freeze_fixed_table(model):
    """The model with the resampler's position table frozen, wherever adapters may have put a copy of it."""
    for name, parameter in model.named_parameters():
        if without_wrappers(name).endswith(family.FIXED_TABLE):
            parameter.requires_grad_(False)
    return model


def whole_modules(model, requested=None):
    """Names of the modules that train whole beside adapters: as requested, else wte and lm_head on a base model.

    A base model, told by its generation_config.chat_format, has never seen the ChatML markers
    (docs/checkpoint_format.md section 7).
    """
    if requested:
        return None if requested == ["none"] else list(requested)
    return None if family.is_chat(model.generation_config.to_dict()) else list(family.WHOLE_ON_A_BASE)


def add_adapters(model, *, r, alpha, dropout, targets, bias, modules_to_save, new_tokens=(), **variant):
    """A PeftModel with new LoRA adapters; ValueError for a target or a module that is not in the model.

    targets: names or words (`adapters.target_modules`). new_tokens: ids whose rows of the embeddings and of lm_head
    train. variant: fields of PEFT's LoraConfig that choose one, such as use_rslora, use_dora, init_lora_weights.
    """
    lora_targets.check_names(model, targets, modules_to_save or ())
    rows = lora_targets.trained_rows(new_tokens, modules_to_save or ())
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=lora_targets.target_modules(model, targets),
        bias=bias,
        modules_to_save=lora_targets.modules_to_save(model, modules_to_save),
        trainable_token_indices=rows or None,
        **variant,
    )
    quiet_gptqmodel()  # which peft imports for any adapter
    try:
        return settle(get_peft_model(model, config))
    except NoMatchingPeftModuleError as error:
        raise ValueError(
            f"--lora_target_modules {' '.join(targets)}: all of them lie in what trains whole (--modules_to_save "
            f"{' '.join(modules_to_save or ())}), so that nothing is left for adapters; choose other targets, or train "
            "without --use_lora"
        ) from error


def load_adapters(model, adapter_dir, *, trainable=False):
    """A PeftModel with the adapter of a folder; ValueError where it does not fit the model or is damaged."""
    quiet_gptqmodel()  # which peft imports for any adapter
    try:
        model = PeftModel.from_pretrained(model, adapter_dir, is_trainable=trainable)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{adapter_dir}: the adapter is damaged or does not fit the model: {error}") from error
    return settle(model) if trainable else model


def settle(model):
    """A trainable PeftModel in which what trains is corrected where PEFT's rules do not fit this model."""
    if model.peft_config["default"].bias == "all":  # PEFT sees only parameters that are called `bias`
        for name, parameter in model.named_parameters():
            if name.endswith(family.HIDDEN_BIASES) and ".original_module." not in name:
                parameter.requires_grad_(True)
    return freeze_fixed_table(model)


def without_wrappers(name):
    """The name that a parameter has in the model without adapters."""
    for wrapper in ("base_model.model.", ".modules_to_save.default", ".original_module"):
        name = name.replace(wrapper, "")
    return name
