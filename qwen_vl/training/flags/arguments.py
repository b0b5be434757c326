"""The command line of training: our flags, all TrainingArguments, old spellings, and a YAML file given first."""

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple

import torch
import yaml
from transformers import HfArgumentParser
from transformers import TrainingArguments as HfTrainingArguments
from transformers.hf_argparser import string_to_bool

from qwen_vl.adapters.options import LoraOptions
from qwen_vl.hubs import names
from qwen_vl.training.distributed import engines
from qwen_vl.training.monitor import selection

from . import adapter_checks, checks, optimizers
from .spelling import suggestion, unknown_arguments


def option(default: Any, text: str) -> Any:
    """Return a dataclass field with a default and the help text that `--help` shows."""
    if isinstance(default, (list, tuple)):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """The model folder to train."""

    model_name_or_path: str = option("Qwen/Qwen-VL-Chat", "Folder or hub name of a Qwen-VL checkpoint.")
    hub: str | None = option(
        None, "Hub of models given by name: huggingface or modelscope; default $QWEN_VL_HUB, else huggingface."
    )
    revision: str | None = option(None, "Branch, tag or commit of the model on its hub; short for NAME@REVISION.")
    attn_implementation: str = option("sdpa", "Attention: sdpa, eager or flash_attention_2 (where installed).")


@dataclass
class DataArguments:
    """The data of a run, and how they are read."""

    # None is not in the type of a required flag: `checks.check` rejects a command line without it.
    data_path: list[str] = option(  # noqa: RUF009
        None,
        "Conversation files (JSON, Parquet, a folder, hf:NAME:SPLIT ..: docs/data.md), each PATH or PATH:WEIGHT.",
    )
    mix: str = option(
        "concat", "Several files: concat (all samples, times the weight) or interleave (shares by weight)."
    )
    eval_data_path: str | None = option(None, "Conversation file for evaluation, same format.")
    image_folder: str | None = option(None, "Where relative image paths are looked up after the data file's folder.")
    skip_manifest: list[str] | None = option(  # noqa: RUF009
        None, "Skip manifests of data files, whose records are skipped (qwen-vl data check --fix)."
    )
    overlength: str = option("trim", "Longer samples than --model_max_length: trim by whole turns, drop, or error.")
    loss_on: str = option("reference", "Targets of the loss: reference (turn markers as well) or answers alone.")
    packing: str = option("none", "auto: whole samples fill rows of --model_max_length; batch sizes then count rows.")
    max_pictures_per_row: int | None = option(None, "Most images of a packed row, to limit memory; default no limit.")
    tokenized_cache: str | None = option(
        None, "Folder for tokenized data, or none; default ~/.cache/qwen-vl or $QWEN_VL_CACHE, for files from 1 MiB."
    )
    lazy_preprocess: bool = option(
        False, "Without a tokenized cache: tokenize on access instead of keeping all ids in memory."
    )
    streaming: bool = option(
        False, "Read data that does not fit in memory record by record, as needed; requires --max_steps."
    )
    shuffle_buffer: int = option(1000, "Size of a reader's shuffle buffer with --streaming, in records.")
    vision_cache: str | None = option(
        None, "Folder for cached features of the frozen vision tower: filled as needed, read from then on."
    )
    allow_control_tokens: bool = option(False, "Read markers such as <|im_end|> inside texts as control tokens.")


NEW_ADAPTERS = LoraOptions()  # the defaults


@dataclass
class LoraArguments:
    """The adapter, with --use_lora."""

    lora_r: int = option(NEW_ADAPTERS.r, "LoRA rank.")
    lora_alpha: int = option(NEW_ADAPTERS.alpha, "LoRA scaling is lora_alpha / lora_r.")
    lora_dropout: float = option(NEW_ADAPTERS.dropout, "Dropout before the adapters.")
    lora_target_modules: list[str] = option(  # noqa: RUF009
        NEW_ADAPTERS.targets,
        "Modules that get adapters: names (ends of module paths), or attention, mlp, resampler, vision, all-linear.",
    )
    lora_weight_path: str | None = option(None, "Adapter folder to continue; its own rank, scaling and targets apply.")
    lora_bias: str = option(NEW_ADAPTERS.bias, "Biases that train with the adapters: none, all or lora_only.")
    modules_to_save: list[str] | None = option(  # noqa: RUF009
        None, "Modules that train whole next to the adapters; default wte and lm_head on a base model; 'none' for none."
    )
    q_lora: bool = option(
        False, "Train adapters on quantized weights: those of the checkpoint, or made by --quantization."
    )
    quantization: str | None = option(
        None, "Quantization of float weights by --q_lora while loading: nf4 (the default) or int8, by bitsandbytes."
    )
    use_rslora: bool = option(False, "Rank-stabilized LoRA: scaling is lora_alpha / sqrt(lora_r).")
    use_dora: bool = option(False, "DoRA: train the magnitudes of weight columns as well; slower.")
    init_lora_weights: str = option("default", f"How adapters start: {', '.join(adapter_checks.LORA_STARTS)}.")
    loraplus_lr_ratio: float | None = option(None, "LoRA+: how many times faster the B matrices train; 16 is usual.")
    lora_lr: float | None = option(
        None,
        "Learning rate of the adapters; --learning_rate then applies to the rest. --loraplus_lr_ratio multiplies it "
        "for their B matrices.",
    )


@dataclass
class TrainingArguments(HfTrainingArguments):
    """How to train: every field of transformers' TrainingArguments, and flags of our own."""

    output_dir: str = option(None, "Folder for checkpoints and the final model or adapter.")
    model_max_length: int = option(2048, "Most tokens of a sample, image spans included; longer samples are trimmed.")
    fix_vit: bool = option(True, "Freeze the vision tower except its resampler's cross-attention (visual.attn_pool).")
    use_lora: bool = option(False, "Train low-rank adapters instead of the weights; --q_lora implies it.")
    vision_lr: float | None = option(
        None,
        "Learning rate of trainable parts of the ViT, adapters there included; --loraplus_lr_ratio multiplies it for "
        "their B matrices.",
    )
    resampler_lr: float | None = option(
        None,
        "Learning rate of trainable parts of the resampler (visual.attn_pool), adapters there included; "
        "--loraplus_lr_ratio multiplies it for their B matrices.",
    )
    new_special_tokens: list[str] | None = option(  # noqa: RUF009
        None, "Names for <|extra_0|>, <|extra_1|> ..: one token each in texts; with adapters only their rows train."
    )
    checkpoint_every_n_blocks: int = option(
        1, "With --gradient_checkpointing: recompute only every n-th block, if memory allows; 1 for all."
    )
    sample_phases_every: int = option(10, "Profile the phases of every n-th step (time/.. in the log); 0 for never.")
    cache_dir: str | None = option(None, "Download folder for a checkpoint that is given by hub name.")
    early_stopping_patience: int = option(
        0, "Stop after this many evaluations in a row without improvement, with the best model; 0 for never."
    )
    eval_generate: bool = option(
        False,
        "At each evaluation, answer records of --eval_data_path and score them as qwen-vl evaluate --data does.",
    )
    eval_generate_limit: int = option(200, "Most records that are answered: a fixed random subset of --eval_data_path.")
    eval_generate_max_new_tokens: int = option(256, "Most tokens of such an answer.")
    eval_generate_batch_size: int = option(8, "Answers that each process generates at a time.")
    meeting_timeout: float = option(
        300,
        "Seconds within which all ranks must join the rendezvous of a run; after that an error names the missing ones.",
    )
    debug_traceback: bool = option(False, "Show the traceback of an error; same as --debug without a value.")
    # Defaults of the original where those of transformers differ.
    optim: str = option(
        optimizers.AUTO,
        "Optimizer, one of transformers' names, such as adamw_bnb_8bit; auto is AdamW, fused if possible.",
    )
    adam_beta2: float = option(0.95, "Second-moment decay of AdamW.")
    lr_scheduler_type: str = option("cosine", "Learning-rate schedule.")
    logging_steps: float = option(10, "Steps between two log lines.")
    logging_nan_inf_filter: bool = option(False, "Always off: a loss that is not finite stops the run.")
    prediction_loss_only: bool = option(True, "Evaluation keeps the loss, not the logits.")
    remove_unused_columns: bool = option(False, "Always off: the collator builds exactly the inputs of the model.")
    dataloader_num_workers: int = option(2, "Processes that open images, besides the training process.")
    dataloader_persistent_workers: bool = option(True, "Keep these processes from one epoch to the next.")
    dataloader_prefetch_factor: int | None = option(
        None, "Batches that each of them prefetches; default enough for all micro-batches of a step."
    )
    report_to: list[str] = option(["none"], "Where logs go: none, tensorboard, wandb, or several of them.")  # noqa: RUF009
    resume: str | None = option(
        None, "Short for --resume_from_checkpoint: a folder, or auto for the newest checkpoint."
    )
    # Spellings of older transformers releases. Most commands still use gradient_checkpointing, which was renamed.
    gradient_checkpointing: bool | None = option(False, "Recompute activations in the backward pass to save memory.")
    evaluation_strategy: str | None = option(None, "Old name of --eval_strategy.")
    warmup_ratio: float | None = option(
        None, "Share of all steps that warm up; old name of a fractional --warmup_steps."
    )
    group_by_length: bool = option(False, "Old name of --train_sampling_strategy group_by_length.")
    no_cuda: bool = option(False, "Old name of --use_cpu.")
    logging_dir: str | None = option(None, "Folder of the tensorboard log; default OUTPUT/runs.")
    save_safetensors: bool = option(True, "Accepted: weights are always safetensors.")
    overwrite_output_dir: bool = option(
        False, "Accepted: without --resume_from_checkpoint a run starts from the beginning."
    )

    def __post_init__(self) -> None:
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.resume is not None:
            self.resume_from_checkpoint = self.resume
        if self.warmup_ratio:
            self.warmup_steps = self.warmup_ratio
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.no_cuda or not torch.accelerator.is_available():
            self.use_cpu = True  # without it transformers rejects --bf16 on a machine without a GPU
        if self.logging_dir:
            os.environ["TENSORBOARD_LOGGING_DIR"] = self.logging_dir
        self.activation_checkpointing: bool | None = self.activation_checkpointing or self.gradient_checkpointing
        self.gradient_checkpointing = None
        if self.gradient_checkpointing_kwargs is not None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
            self.gradient_checkpointing_kwargs: dict[str, Any] | None = None
        self.optim = optimizers.resolve(self.optim, deepspeed=self.deepspeed, fsdp=self.fsdp)
        if not self.dataloader_num_workers:
            self.dataloader_persistent_workers = False
        elif self.dataloader_prefetch_factor is None:
            # transformers takes all micro-batches of a step before it computes the first, and waits if fewer are ready:
            # a third of the time, measured with 16 micro-batches and 2 workers that prefetch 2 each.
            self.dataloader_prefetch_factor = -(-self.gradient_accumulation_steps // self.dataloader_num_workers) + 1
        if self.early_stopping_patience:
            self.load_best_model_at_end = True
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith(selection.LOWER_IS_BETTER):
            self.greater_is_better: bool | None = False  # transformers knows that of a loss alone
        engines.check_launched(self.deepspeed, self.fsdp)
        deepspeed = self.deepspeed
        self.deepspeed: str | None = None  # begins in `start`, as does what `_is_built` guards
        self._is_built = False
        super().__post_init__()
        self._is_built, self.deepspeed = True, deepspeed
        if self.activation_checkpointing and self.checkpoint_every_n_blocks > 1:
            kwargs = self.activation_checkpointing_kwargs or {"use_reentrant": False}
            self.activation_checkpointing_kwargs = kwargs | {"every_n_layers": self.checkpoint_every_n_blocks}
        if self.fsdp:
            # FSDP recomputes activations itself, since transformers' way gathers the weights once more. Not with
            # adapters: PEFT would not find them below the wrappers that FSDP puts around blocks.
            self.fsdp_plugin_args["activation_checkpointing"] = self.activation_checkpointing and not self.use_lora
            self.activation_checkpointing = self.activation_checkpointing and self.use_lora
        if not engines.is_launched():
            self.start()  # one process: nothing to connect

    @property
    def device(self) -> torch.device:
        """Return the device of this process; a placeholder during parsing, since choosing it connects the ranks."""
        return super().device if self._is_built else torch.device("cpu")

    @property
    def n_gpu(self) -> int:
        """Return at most 1: for more GPUs transformers would split batches by rows, which images do not allow."""
        return min(super().n_gpu, 1)

    def start(self) -> None:
        """Connect the ranks of the run, choose the device and set up DeepSpeed. Call it before training.

        Raise ValueError if DeepSpeed's file contradicts the flags, OSError if a rank is missing.
        """
        engines.prepare(
            use_cpu=self.use_cpu,
            deepspeed=self.deepspeed,
            fsdp=self.fsdp,
            timeout=self.meeting_timeout,
            ddp_timeout=self.ddp_timeout,
        )
        _ = self.device
        if self.fsdp and self.use_cpu:
            engines.use_fsdp_on_cpu(self.distributed_state)
        if self.deepspeed:
            self.hf_deepspeed_config, self.deepspeed_plugin = engines.deepspeed_settings(self)


class TrainFlags(NamedTuple):
    """The flags of a run, parsed and checked: model, data, adapter and training."""

    model: ModelArguments
    data: DataArguments
    lora: LoraArguments
    training: TrainingArguments


def make_parser() -> HfArgumentParser:
    """Return the parser of `finetune.py`; its help lists every flag."""
    kinds = (ModelArguments, DataArguments, LoraArguments, TrainingArguments)
    return HfArgumentParser(
        kinds, prog="finetune.py", allow_abbrev=False, usage="%(prog)s [config.yaml] [--flag value ..]"
    )


def parse(argv: Sequence[str] | None = None) -> TrainFlags:
    """Return the flags of a command line, which may begin with a YAML file, without connecting ranks.

    The command line wins over the YAML. Mistakes exit with code 2: an unknown flag or key gets a suggestion, all wrong
    values are listed together.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # Bare `--debug` asks for tracebacks; with a value it is transformers' own flag.
    argv = ["--debug_traceback" if a == "--debug" and (i + 1 == len(argv) or argv[i + 1].startswith("--")) else a
            for i, a in enumerate(argv)]  # fmt: skip
    parser = make_parser()
    if argv and argv[0].endswith((".yaml", ".yml")):
        parser.set_defaults(**read_yaml(argv.pop(0), parser))
    settings, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(unknown_arguments(unknown, parser._option_string_actions))
    settings.use_lora = settings.use_lora or settings.q_lora
    problems = name_models(settings) + checks.check(settings)
    if problems and engines.is_launched():  # before the rendezvous; one rank a machine prints it
        sys.exit(2) if os.environ.get("LOCAL_RANK", "0") != "0" else parser.error("\n  ".join(problems))
    try:
        parsed = parser.parse_dict(vars(settings))
    except (ValueError, TypeError, ImportError) as error:  # rejected by transformers
        problems.append(" ".join(str(error).split()))
    except OverflowError as error:  # of an infinite number, which `checks` names in more words
        problems = problems or [str(error)]
    if problems:
        parser.error("\n  ".join(problems))
    return TrainFlags(*parsed)


def name_models(settings: Namespace) -> list[str]:
    """Give the names of models the hub and the revision of the flags; return a line for each that is wrong."""
    try:
        named = names.full(settings.model_name_or_path, hub=settings.hub, revision=settings.revision)
        adapter = settings.lora_weight_path and names.full(settings.lora_weight_path, hub=settings.hub)
    except ValueError as error:
        return [str(error)]
    settings.model_name_or_path, settings.lora_weight_path = named, adapter
    return []


def changed(*parsed: Any) -> dict[str, Any]:
    """Return {flag: value} of all flags that differ from their defaults, except access tokens."""
    found = {}
    for group in parsed:
        for flag in fields(group):
            default = flag.default_factory() if flag.default_factory is not MISSING else flag.default
            value = getattr(group, flag.name) if flag.init else default
            if value != default and not flag.name.endswith("token"):
                found[flag.name] = value
    return found


def read_yaml(path: str, parser: HfArgumentParser) -> dict[str, Any]:
    """Return the settings of a YAML file as a dict whose keys are flags without dashes.

    A key without a value keeps its default. Mistakes exit with code 2.
    """
    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file) or {}
    except FileNotFoundError:
        parser.error(f"{path}: no such file")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"{path}: not YAML: {error}")
    if not isinstance(settings, dict):
        parser.error(f"{path}: holds a {type(settings).__name__}; write one `flag: value` a line, without dashes")
    known = {f.name for kind in parser.dataclass_types for f in fields(kind) if f.init}
    problems = [
        f"{path}: unknown key {key}{suggestion(str(key), parser._option_string_actions)}"
        for key in settings
        if key not in known
    ]
    flags = {action.dest: action for action in reversed(parser._actions)}  # --flag comes before its --no_flag
    values = {}
    for key in known & settings.keys():
        value, takes_list = settings[key], flags[key].nargs == "+"
        if isinstance(value, list) and not takes_list:
            problems.append(f"{path}: {key} takes one value, not a list")
        elif value is not None:
            value = as_text(value, is_switch=flags[key].type is string_to_bool)
            value = with_numbers(value) if isinstance(value, dict) else value
            values[key] = [value] if takes_list and not isinstance(value, list) else value
    if problems:
        parser.error("\n  ".join(problems))
    return values


def as_text(value: Any, *, is_switch: bool) -> Any:
    """Return a YAML value as the text of the command line; lists and mappings stay as they are.

    YAML reads 1e-5 as text and `no` as false, so argparse, which knows the type of a flag, converts the text.
    """
    if isinstance(value, bool) and not is_switch:
        return "yes" if value else "no"
    return str(value) if isinstance(value, (bool, int, float)) else value


def with_numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping with numbers in place of texts that are numbers: YAML reads 1e-5 as text."""
    found = {}
    for key, value in settings.items():
        found[key] = with_numbers(value) if isinstance(value, dict) else value
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                found[key] = float(value)
    return found
