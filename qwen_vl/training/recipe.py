"""The steps of a training run, in the order of finetune.py: prepare, data, model, trainer, results."""

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from transformers import set_seed

from qwen_vl.adapters import build, convert, lora_targets
from qwen_vl.adapters.adapter import Adapter, Base
from qwen_vl.adapters.options import Bias, LoraOptions
from qwen_vl.checkpoint import loading, quantization, saving
from qwen_vl.checkpoint.files import read_json_or_none
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.data import build as data_build
from qwen_vl.data import mixing
from qwen_vl.data.chatml import EncodeOptions, Overlength
from qwen_vl.data.collator import ConversationCollator
from qwen_vl.data.dataset import SampleDataset
from qwen_vl.data.packing import PackedDataset, PackOptions
from qwen_vl.data.sources import streaming
from qwen_vl.data.sources.streaming import StreamOptions
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel, QWenTokenizer

from . import final_model, param_groups, preflight, tuning
from .distributed import engines
from .flags import arguments
from .flags.arguments import DataArguments, LoraArguments, TrainFlags, TrainingArguments
from .held_out import questions
from .held_out.answers import Asker
from .held_out.questions import Questions
from .monitor import html_report, run_record
from .resume import checkpoints
from .resume import settings as resume_settings
from .resume.checkpoints import RunCheckpoint
from .resume.data_position import TrainData
from .trainer import QWenTrainer
from .vision_cache import cache

logger = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """The facts about a run that are known before its data and weights are loaded."""

    folder: ModelFolder  # the model that is trained
    tokenizer: QWenTokenizer
    adapter: Adapter | None  # of --lora_weight_path
    new_adapters: LoraOptions  # with --use_lora, if there is no adapter to continue
    quantization: str | None  # applied to the base's weights while they are loaded
    rates: param_groups.Rates
    base: Base  # the weights before training
    rows: list[param_groups.Row]  # what trains and how
    checkpoint: RunCheckpoint | None  # from which the run resumes
    settled: resume_settings.Settled
    changed_flags: dict[str, Any]  # those that are not the default


class RunData(NamedTuple):
    """The datasets of a run."""

    train: TrainData
    evaluation: SampleDataset | None
    questions: Questions | None  # of --eval_generate


class Loaded(NamedTuple):
    """The model of a run, ready to train."""

    model: QWenLMHeadModel | PeftModel
    dtype: torch.dtype  # of frozen weights, and of the final model
    start: dict[str, Any] | None  # `convert.starting_point` of its adapters
    rows: list[param_groups.Row]


def log_to_stderr(training: TrainingArguments) -> None:
    """Print the log messages of our modules: all of them on rank 0, only errors on other ranks."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("qwen_vl").setLevel(logging.INFO if training.process_index == 0 else logging.ERROR)


def prepare(flags: TrainFlags) -> Prepared:
    """Check everything that needs neither data nor weights, and return the Prepared run.

    Raise ValueError or OSError if flags, checkpoint, adapter and output folder do not fit together.
    """
    lora, training, name = flags.lora, flags.training, flags.model.model_name_or_path
    name = os.path.abspath(name) if os.path.isdir(name) else name  # recorded with an adapter, so good from anywhere
    preflight.check_steps(training.max_steps)
    saving.check_writable(training.output_dir)
    if training.process_index == 0:
        final_model.finish_saving(training.output_dir)  # of a run that was killed while it replaced its model
    checkpoint = checkpoints.to_resume(training.output_dir, training.resume_from_checkpoint)
    settled = resume_settings.restore_kept_flags(flags, checkpoint, anew=training.ignore_data_skip)
    folder = ModelFolder.open(name, training.cache_dir)
    config = folder.config
    adapter = Adapter.open(lora.lora_weight_path) if lora.lora_weight_path else None
    tokenizer = load_tokenizer(folder, adapter, training)
    kind = quantization.chosen_kind(config, lora.quantization, name, default="nf4" if lora.q_lora else None)
    rates = param_groups.Rates(  # after `restore_kept_flags`, since a checkpoint's rates are kept
        everything=training.learning_rate,
        vision=training.vision_lr,
        resampler=training.resampler_lr,
        lora=lora.lora_lr,
        loraplus_ratio=lora.loraplus_lr_ratio,
    )
    check_adapter_flags(kind, lora, training)
    loading.check_files(name, folder.cache_dir)
    skeleton = loading.skeleton(name, config, folder.cache_dir)
    new_adapters = lora_options(lora, skeleton, tokenizer.convert_tokens_to_ids(training.new_special_tokens or []))
    model = rehearse(skeleton, kind, adapter, new_adapters, flags)
    rows = param_groups.rows(model, rates=rates, weight_decay=training.weight_decay)
    cache.check_frozen(flags.data.vision_cache, model, is_sharded=engines.is_sharded(training))
    preflight.check_optimizer(training, model)
    if adapter:
        adapter.check_base(name, folder.fingerprint)
    base = Base(name=name, fingerprint=folder.fingerprint, quantization=kind)
    if checkpoint:
        dtype = tuning.compute_dtype(bf16=training.bf16, fp16=training.fp16)
        resume_settings.check(checkpoint, model, dtype=dtype, base=base)
    changed = arguments.changed(*flags)
    return Prepared(folder, tokenizer, adapter, new_adapters, kind, rates, base, rows, checkpoint, settled, changed)


def load_tokenizer(folder: ModelFolder, adapter: Adapter | None, training: TrainingArguments) -> QWenTokenizer:
    """Return the tokenizer of a model or of the adapter to continue, with the new tokens of this run."""
    if adapter:
        return adapter.load_tokenizer(folder)
    names = training.new_special_tokens
    return loading.load_tokenizer(folder.path, folder.config, folder.cache_dir, extra_tokens=names)


def check_adapter_flags(kind: str | None, lora: LoraArguments, training: TrainingArguments) -> None:
    """Raise ValueError if these adapters cannot train on a base with this quantization and engine."""
    lora_targets.check_base(
        kind,
        lora=training.use_lora,
        use_dora=lora.use_dora,
        start=lora.init_lora_weights,
        bias=lora.lora_bias,
        in_parts=engines.is_sharded(training),
        recast=training.fp16_full_eval or training.bf16_full_eval,
    )


def lora_options(lora: LoraArguments, model: QWenLMHeadModel, new_tokens: list[int]) -> LoraOptions:
    """Return the settings of new adapters as the flags say.

    model: without weights, if need be; it decides the default of --modules_to_save. new_tokens: ids of their rows.
    """
    return LoraOptions(
        r=lora.lora_r,
        alpha=lora.lora_alpha,
        dropout=lora.lora_dropout,
        targets=lora.lora_target_modules,
        bias=cast(Bias, lora.lora_bias),  # `adapter_checks` refuses other words
        modules_to_save=build.whole_modules(model, lora.modules_to_save),
        new_tokens=new_tokens,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if lora.init_lora_weights == "default" else lora.init_lora_weights,
    )


def rehearse(
    model: QWenLMHeadModel, kind: str | None, adapter: Adapter | None, new_adapters: LoraOptions, flags: TrainFlags
) -> QWenLMHeadModel | PeftModel:
    """Return a model on the meta device, prepared for training like the real one, without loading weights.

    Raise ValueError or OSError if the flags do not fit the model or the adapter folder.
    """
    lora, training = flags.lora, flags.training
    with torch.device("meta"):
        if adapter:
            asked = None if lora.lora_r == LoraArguments.lora_r else lora.lora_r
            return lora_targets.rehearsed(adapter, model, r=asked)
        if not training.use_lora:
            return tuning.freeze_for_full(model, fix_vit=training.fix_vit)
        if not lora.modules_to_save and not family.is_marked(model.generation_config.to_dict()):
            logger.warning(
                "generation_config.json has no chat_format, so this counts as a chat model; for a base model give "
                "--modules_to_save %s, so that it learns the markers of turns", " ".join(family.WHOLE_ON_A_BASE)
            )  # fmt: skip
        whole = new_adapters.modules_to_save or ()
        lora_targets.check_whole(model, whole, kind)
        # Other starts need the weights, and rows are checked below with a better message.
        model = build.add_adapters(model, new_adapters._replace(init_lora_weights=True, new_tokens=()))
        lora_targets.check_rows(lora_targets.trained_rows(training.new_special_tokens or (), whole), model)
        return model


def is_finished(prepared: Prepared, training: TrainingArguments) -> bool:
    """Return whether the run of the checkpoint already has its result; if so, print that."""
    newest, last = checkpoints.is_automatic(training.resume_from_checkpoint), prepared.checkpoint
    if last is None and newest and (found := checkpoints.found(training.output_dir)):
        last = RunCheckpoint.open(found[0])
    if last is None or not resume_settings.is_finished(
        training.output_dir,
        last,
        prepared.changed_flags,
        max_steps=training.max_steps,
        num_train_epochs=training.num_train_epochs,
        newest=newest,
        resumable=prepared.checkpoint is not None,
    ):
        return False
    if training.process_index == 0:
        state = read_json_or_none(last.path, checkpoints.TRAINER_STATE) or {}
        print(
            f"already finished (step {state.get('global_step')} of {state.get('max_steps')}); nothing trained, and "
            f"{training.output_dir} is as it was; more --num_train_epochs or --max_steps make the run longer, "
            "--resume false or another --output_dir begins a new one"
            + (f". Without effect: {prepared.settled.said()}" if prepared.settled.applied else ""),
            file=sys.stderr,
        )
    return True


def load_data(
    data: DataArguments, training: TrainingArguments, tokenizer: QWenTokenizer, checkpoint: RunCheckpoint | None
) -> RunData:
    """Return the training data and the evaluation data; a stream resumes from the position in the checkpoint.

    Write OUT/overlength.jsonl with the samples that the length limit changed, if there are any.
    """
    seed = training.seed if training.data_seed is None else training.data_seed
    encoding = EncodeOptions(
        max_length=training.model_max_length,
        overlength=data.overlength,
        loss_on=data.loss_on,
        control_tokens=data.allow_control_tokens,
    )
    reading = data_build.SourceOptions(
        cache=data.tokenized_cache, lazy=data.lazy_preprocess, image_folder=data.image_folder
    )
    manifests = data.skip_manifest or ()
    packing = PackOptions(training.model_max_length, data.max_pictures_per_row) if data.packing == "auto" else None
    sources, overlength = mixing.parse_sources(data.data_path), Path(training.output_dir, "overlength.jsonl")
    if training.process_index == 0:
        overlength.unlink(missing_ok=True)  # of an earlier run
    evaluation = None
    if data.eval_data_path:
        evaluation = data_build.load_file(data.eval_data_path, tokenizer, encoding, reading)
    asked = questions.asked_by(data, training)
    if data.streaming:
        options = StreamOptions(
            mix=data.mix,
            seed=seed,
            image_folder=data.image_folder,
            rank=training.process_index,
            world_size=training.world_size,
            buffer_size=data.shuffle_buffer,
            overlength_path=overlength,
            packing=packing,
            batch_size=training.train_batch_size,
            num_seen=0 if training.ignore_data_skip else num_samples_seen(checkpoint, training),
        )
        stream = data_build.stream(sources, tokenizer, encoding, options, skip_manifests=manifests)
        return RunData(stream, evaluation, asked)
    train = data_build.load(sources, tokenizer, encoding, reading, mix=data.mix, seed=seed, skip_manifests=manifests)
    if train.overlength and training.process_index == 0:
        write_overlength(train.overlength, overlength)
    return RunData(PackedDataset(train, packing, seed=seed) if packing else train, evaluation, asked)


def write_overlength(entries: Sequence[Overlength], path: Path) -> None:
    """Write one line for each sample that the length limit changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    path.write_text(text, encoding="utf-8")


def num_samples_seen(checkpoint: RunCheckpoint | None, training: TrainingArguments) -> int:
    """Return how many samples (or packed rows) all ranks read from a stream before a checkpoint; 0 without one."""
    if checkpoint is None:
        return 0
    state = checkpoint.state
    per_step = training.train_batch_size * training.world_size * training.gradient_accumulation_steps
    return state["data"]["seen"] if "data" in state else state["step"] * per_step


def load_model(prepared: Prepared, flags: TrainFlags) -> Loaded:
    """Return the loaded model with its trainable parameters set up, and print the table of what trains."""
    training = flags.training
    set_seed(training.seed)
    dtype = tuning.compute_dtype(bf16=training.bf16, fp16=training.fp16)
    model = loading.load_model(
        prepared.folder.path,
        dtype=dtype,
        attn_implementation=flags.model.attn_implementation,
        cache_dir=prepared.folder.cache_dir,
        quantization=prepared.quantization,
        device=training.device,
    )
    start = None
    if training.use_lora:
        if prepared.adapter:
            model = build.load_adapters(model, prepared.adapter, trainable=True)
        else:
            model = build.add_adapters(model, prepared.new_adapters)
        if training.activation_checkpointing:
            model.enable_input_require_grads()
        start = convert.starting_point(model)
    else:
        model = tuning.freeze_for_full(model, fix_vit=training.fix_vit)
    # DeepSpeed keeps float32 copies itself.
    model = tuning.train_in(model, dtype) if training.deepspeed else tuning.train_in_float32(model)
    rows = param_groups.rows(model, rates=prepared.rates, weight_decay=training.weight_decay)
    if training.process_index == 0:
        print(param_groups.table(rows), file=sys.stderr)
    return Loaded(model, dtype, start, rows)


def make_trainer(prepared: Prepared, flags: TrainFlags, data: RunData, loaded: Loaded) -> QWenTrainer:
    """Return the trainer of a run, with the vision cache if there is one."""
    training = flags.training
    features = cache.opened(
        flags.data.vision_cache,
        loaded.model,
        name=prepared.folder.path,
        dtype=loaded.dtype,
        cache_dir=prepared.folder.cache_dir,
        is_sharded=engines.is_sharded(training),
    )
    settled, output_dir = prepared.settled, training.output_dir
    asker = data.questions and Asker(
        data.questions, prepared.tokenizer, output_dir=output_dir, is_sharded=engines.is_sharded(training)
    )
    return QWenTrainer(
        model=loaded.model,
        args=training,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=ConversationCollator(
            prepared.tokenizer, family.image_size(prepared.folder.config), vision_cache=features
        ),
        vision_cache=features,
        tokenizer=prepared.tokenizer,
        base=prepared.base if training.use_lora else None,
        made_with={"base": prepared.base, "settings": settled.settings, "resumed": settled.resumed},
        rates=prepared.rates,
        asker=asker,
        callbacks=[asker] if asker else None,
        source_names=data.train.names,
        is_weighted=data.train.is_weighted or bool(data.evaluation and data.evaluation.is_weighted),
    )


def write_results(prepared: Prepared, flags: TrainFlags, loaded: Loaded, trainer: QWenTrainer) -> None:
    """Write the trained model or adapter and the records of the run on rank 0; every rank must call this."""
    weights = engines.whole_weights(trainer)
    if not trainer.is_world_process_zero():
        return
    output_dir, base = flags.training.output_dir, prepared.base if flags.training.use_lora else None
    with saving.naming(output_dir):
        trainer.save_state()
        final_model.save_final(
            loaded.model,
            prepared.tokenizer,
            output_dir,
            dtype=loaded.dtype,
            base=base,
            weights=weights,
            start=loaded.start,
        )
        write_records(
            prepared, flags.data, output_dir, base=base or Base(name=prepared.folder.path), trained=loaded.rows
        )
    trainer.push_result()
    print(f"saved to {output_dir}", file=sys.stderr)


def write_records(
    prepared: Prepared,
    data: DataArguments,
    output_dir: str,
    *,
    base: Base,
    trained: list[param_groups.Row],
) -> None:
    """Write report.html, then run.json, which marks the run as finished."""
    changed_flags, resumed = prepared.changed_flags, prepared.settled.resumed
    if data.streaming:
        streaming.report(Path(output_dir, "overlength.jsonl"))
    html_report.write(output_dir, settings=changed_flags | run_record.earlier({"resumed": resumed}), trained=trained)
    run_record.write(
        output_dir,
        settings=changed_flags,
        base=base,
        data_path=data.data_path,
        eval_data_path=data.eval_data_path,
        resumed=resumed,
    )
