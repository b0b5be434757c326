"""The base of an adapter: which it is, and whether it is the one that the adapter was trained on."""

from pathlib import Path

from peft import PeftConfig
from transformers import GenerationConfig

from qwen_vl.training import loading, saving


def is_adapter(path):
    """Whether a folder holds an adapter and not a model."""
    return Path(path, "adapter_config.json").is_file()


def find_base(adapter_dir, base=None, trust_base=False):
    """Path or hub name of the base of an adapter, its weights checked against the fingerprint saved at training.

    Raises FileNotFoundError where there is no adapter, ValueError where the base is not, or may not be, the right one.
    """
    recorded = saving.recorded_base(adapter_dir)
    base = base or (recorded or {}).get("name") or PeftConfig.from_pretrained(adapter_dir).base_model_name_or_path
    if trust_base:
        return base
    if recorded is None:
        raise ValueError(
            f"{adapter_dir}: has no {saving.BASE_FILE}, so nothing says that {base} is its base; "
            "pass --trust_base if you know that it is"
        )
    try:
        found = loading.fingerprint(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the base of {adapter_dir}: {error}; if it has moved, give it with --base") from error
    saving.check_base(adapter_dir, base, found)
    return base


def generation_of(path, model):
    """The GenerationConfig in a checkpoint's folder, else the one that the model has."""
    settings = loading.read_json(path, "generation_config.json")
    return model.generation_config if settings is None else GenerationConfig.from_dict(settings)
