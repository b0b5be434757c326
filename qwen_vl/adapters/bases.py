"""The base of an adapter: which it is, and whether it is the one that the adapter was trained on."""

import os
from pathlib import Path

from peft import PeftConfig
from transformers import GenerationConfig

from qwen_vl.checkpoint import loading


def is_adapter(path):
    """Whether a folder holds an adapter and not a model."""
    return Path(path, "adapter_config.json").is_file()


def find_base(adapter_dir, base=None, trust_base=False):
    """Path or hub name of the base of an adapter, its weights checked against the fingerprint saved at training.

    Raises FileNotFoundError where there is no adapter, ValueError where the base is not, or may not be, the right one.
    """
    recorded = recorded_base(adapter_dir)
    base = base or (recorded or {}).get("name") or PeftConfig.from_pretrained(adapter_dir).base_model_name_or_path
    if trust_base:
        return base
    if recorded is None:
        raise ValueError(
            f"{adapter_dir}: has no {BASE_FILE}, so nothing says that {base} is its base; "
            "pass --trust_base if you know that it is"
        )
    try:
        found = loading.fingerprint(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the base of {adapter_dir}: {error}; if it has moved, give it with --base") from error
    check_base(adapter_dir, base, found)
    return base


def generation_of(path, model):
    """The GenerationConfig in a checkpoint's folder, else the one that the model has."""
    settings = loading.read_json(path, "generation_config.json")
    return model.generation_config if settings is None else GenerationConfig.from_dict(settings)


BASE_FILE = "base.json"  # in an adapter folder: which weights the adapter belongs to


def recorded_base(adapter_dir):
    """{"name", "fingerprint"} of the weights that an adapter was trained on, or None for an adapter made elsewhere.

    Raises FileNotFoundError where there is no adapter.
    """
    if not Path(adapter_dir, "adapter_config.json").is_file():
        hint = "give the --output_dir of a LoRA training"
        unfinished = sorted(Path(adapter_dir).glob("checkpoint-*/adapter_config.json"), key=os.path.getmtime)
        if unfinished:
            hint = f"its run has not finished; the newest adapter is {unfinished[-1].parent}"
        elif Path(adapter_dir, "config.json").is_file():
            hint = "it holds a model, not an adapter; a model is given as --model_name_or_path"
        raise FileNotFoundError(f"{adapter_dir}: no adapter_config.json there; {hint}")
    return loading.read_json(adapter_dir, BASE_FILE)


def load_tokenizer(adapter_dir, base, config=None, cache_dir=None):
    """The tokenizer of an adapter folder, which knows the tokens it was trained with; without one, that of its base."""
    of_adapter = Path(adapter_dir, "qwen.tiktoken").is_file()
    config = config if config is not None else loading.load_config(base, cache_dir)
    return loading.load_tokenizer(adapter_dir if of_adapter else base, config, cache_dir)


def check_base(adapter_dir, name, fingerprint):
    """None, or a ValueError when an adapter was trained on other weights than those of `name`."""
    recorded = recorded_base(adapter_dir)
    if recorded and recorded["fingerprint"] != fingerprint:
        raise ValueError(
            f"{name}: not the weights that {adapter_dir} was trained on (fingerprint {fingerprint[:12]}, "
            f"wanted {recorded['fingerprint'][:12]}); give the base {recorded['name']}"
        )
