"""The command line of training: the reference's flags, all TrainingArguments, old spellings, a YAML file first."""

import argparse
import os
import sys
from dataclasses import dataclass, field, fields

import yaml
from transformers import HfArgumentParser
from transformers import TrainingArguments as HfTrainingArguments

DEFAULT_LORA_TARGETS = ("c_attn", "attn.c_proj", "w1", "w2")


def option(default, text, **metadata):
    """A dataclass field with a default and the help text that `--help` shows."""
    if isinstance(default, (list, tuple)):
        return field(default_factory=lambda: list(default), metadata={"help": text, **metadata})
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class ModelArguments:
    """Which checkpoint is trained."""

    model_name_or_path: str = option("Qwen/Qwen-VL-Chat", "Folder or hub name of a Qwen-VL checkpoint.")
    attn_implementation: str = option("sdpa", "Attention: sdpa, eager or flash_attention_2 (where installed).")


@dataclass
class DataArguments:
    """Which conversations it is trained on."""

    data_path: str | None = option(None, "Conversation file, JSON or JSON lines (data/README.md).")
    eval_data_path: str | None = option(None, "Conversation file for evaluation, same format.")
    image_folder: str | None = option(None, "Where relative picture paths are looked up after the data file's folder.")
    lazy_preprocess: bool = option(False, "Tokenise on access instead of keeping all ids in memory.")
    allow_control_tokens: bool = option(False, "Read markers such as <|im_end|> inside texts as control tokens.")


@dataclass
class LoraArguments:
    """Which adapter, used with --use_lora."""

    lora_r: int = option(64, "LoRA rank.")
    lora_alpha: int = option(16, "LoRA scaling is lora_alpha / lora_r.")
    lora_dropout: float = option(0.05, "Dropout before the adapters.")
    lora_target_modules: list[str] = option(  # noqa: RUF009
        DEFAULT_LORA_TARGETS, "Names (ends of module paths) that get adapters."
    )
    lora_weight_path: str | None = option(None, "Adapter folder to continue instead of starting a new adapter.")
    lora_bias: str = option("none", "Biases that train with the adapters: none, all or lora_only.")
    modules_to_save: list[str] | None = option(  # noqa: RUF009
        None, "Modules that train whole beside the adapters; default wte and lm_head on a base model; 'none' for none."
    )
    q_lora: bool = option(False, "Adapters on a quantised model; not in this version.")


@dataclass
class TrainingArguments(HfTrainingArguments):
    """How it is trained: every field of transformers' TrainingArguments and the reference's own flags."""

    output_dir: str | None = option(None, "Where checkpoints and the final model or adapter are written.")
    model_max_length: int = option(
        2048, "Most tokens of a sample; a picture counts its span, a longer sample is trimmed."
    )
    fix_vit: bool = option(True, "Freeze the vision tower except its resampler's cross-attention (visual.attn_pool).")
    use_lora: bool = option(False, "Train low-rank adapters instead of the weights.")
    cache_dir: str | None = option(None, "Download folder for a checkpoint that is given by hub name.")
    debug_traceback: bool = option(False, "Show the traceback of an error; --debug without a value means this.")
    # The reference's defaults where transformers has others.
    optim: str = option("adamw_torch", "Optimizer, one of transformers' names.")
    adam_beta2: float = option(0.95, "Second-moment decay of AdamW.")
    lr_scheduler_type: str = option("cosine", "Learning-rate schedule.")
    logging_steps: float = option(10, "Steps between two log lines.")
    logging_nan_inf_filter: bool = option(False, "Kept off: a loss that is not finite stops the run.")
    prediction_loss_only: bool = option(True, "Evaluation keeps the loss, not the logits.")
    remove_unused_columns: bool = option(False, "Kept off: the collator makes exactly what the model takes.")
    # Spellings of older transformers releases; gradient_checkpointing, which transformers renamed, is the usual one.
    gradient_checkpointing: bool | None = option(None, "Recompute activations in the backward pass to save memory.")
    evaluation_strategy: str | None = option(None, "Old name of --eval_strategy.")
    warmup_ratio: float | None = option(
        None, "Share of all steps that warm up; old name of a fractional --warmup_steps."
    )
    group_by_length: bool | None = option(None, "Old name of --train_sampling_strategy group_by_length.")
    no_cuda: bool | None = option(None, "Old name of --use_cpu.")
    logging_dir: str | None = option(None, "Folder of the tensorboard log; default OUTPUT/runs.")
    save_safetensors: bool | None = option(None, "Accepted: weights are always safetensors.")
    overwrite_output_dir: bool | None = option(None, "Accepted: without --resume_from_checkpoint a run starts anew.")

    def __post_init__(self):
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.warmup_ratio:
            self.warmup_steps = self.warmup_ratio
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.no_cuda:
            self.use_cpu = True
        if self.logging_dir:
            os.environ["TENSORBOARD_LOGGING_DIR"] = self.logging_dir
        if self.gradient_checkpointing is not None:
            self.activation_checkpointing, self.gradient_checkpointing = self.gradient_checkpointing, None
        if self.gradient_checkpointing_kwargs is not None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
            self.gradient_checkpointing_kwargs = None
        if self.save_safetensors is False:
            raise ValueError("--save_safetensors False: this tool writes safetensors only; leave the flag out")
        super().__post_init__()


def make_parser():
    """The parser of `finetune.py`; its help lists every flag."""
    kinds = (ModelArguments, DataArguments, LoraArguments, TrainingArguments)
    return HfArgumentParser(
        kinds, prog="finetune.py", allow_abbrev=False, usage="%(prog)s [config.yaml] [--flag value ..]"
    )


def parse(argv=None):
    """(ModelArguments, DataArguments, LoraArguments, TrainingArguments) from a command line, a leading YAML first.

    The command line wins over the YAML. An unknown flag or key exits with code 2 and names it; what is wrong in the
    combination is a ValueError that lists every problem.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # Bare `--debug` asks for tracebacks; with a value it is transformers' own flag.
    argv = ["--debug_traceback" if a == "--debug" and (i + 1 == len(argv) or argv[i + 1].startswith("--")) else a
            for i, a in enumerate(argv)]  # fmt: skip
    parser = make_parser()
    if argv and argv[0].endswith((".yaml", ".yml")):
        parser.set_defaults(**read_yaml(argv.pop(0), parser))
    parsed = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if parsed[-1]:
        parser.error(f"unknown argument: {' '.join(parsed[-1])}{suggestion(parsed[-1][0], parser)}")
    parsed = parsed[:-1]
    check(*parsed)
    return parsed


def read_yaml(path, parser):
    """The settings of a YAML file as a dict whose keys are flags without dashes; unknown keys exit with code 2."""
    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file) or {}
    except FileNotFoundError:
        parser.error(f"{path}: no such file")
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: holds a {type(settings).__name__}; write one `flag: value` a line, without dashes")
    known = {f.name for kind in parser.dataclass_types for f in fields(kind) if f.init}
    for key in settings:
        if key not in known:
            parser.error(f"{path}: unknown key {key}{suggestion('--' + str(key), parser)}")
    # YAML reads 1e-5 as text; argparse converts text, so give it text wherever the value is a scalar.
    return {key: str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
            for key, value in settings.items()}  # fmt: skip


def suggestion(flag, parser):
    """' (did you mean --x?)' for a flag that is close to a known one, else ''."""
    import difflib

    names = [name for action in parser._actions for name in action.option_strings]
    close = difflib.get_close_matches(flag.split("=")[0], names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def check(model, data, lora, training):
    """None, or one ValueError that lists everything wrong with the combination of flags."""
    problems = []
    if not training.output_dir:
        problems.append("--output_dir is missing; say where the result goes")
    if not data.data_path:
        problems.append("--data_path is missing; give a conversation file")
    if training.eval_strategy != "no" and not data.eval_data_path:
        problems.append("--eval_strategy needs --eval_data_path")
    if training.use_lora and not training.fix_vit:
        problems.append("--fix_vit False has no effect with --use_lora, which freezes the base; leave one of them out")
    if not training.use_lora and (lora.lora_weight_path or lora.modules_to_save):
        problems.append("--lora_weight_path and --modules_to_save need --use_lora")
    if lora.lora_bias not in ("none", "all", "lora_only"):
        problems.append(f"--lora_bias {lora.lora_bias}: use none, all or lora_only")
    if lora.q_lora:
        problems.append("--q_lora: this version trains adapters on unquantised weights only; use --use_lora --bf16")
    if training.model_max_length < 1:
        problems.append(f"--model_max_length {training.model_max_length}: use a positive number of tokens")
    if problems:
        raise ValueError("\n".join(problems))


def usage_error(message):
    """Exit with code 2 after one line on standard error, as argparse does."""
    argparse.ArgumentParser(prog="finetune.py").error(message)
