"""Fine-tune a Qwen-VL checkpoint on conversations with pictures: the story of one run.

    python finetune.py [config.yaml] --model_name_or_path MODEL --data_path DATA.json --output_dir OUT [--use_lora] ..

`python finetune.py --help` lists every flag.
"""

import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from qwen_vl.entry import run


def main(argv=None):
    """Train as the command line `argv` says; the trained model or adapter is then in --output_dir. Returns None."""
    from qwen_vl.training import arguments

    parsed = model_args, data_args, lora_args, train_args = arguments.parse(argv)
    # Heavy imports come after the flags are known to be right, so that a typo costs no half minute.
    from transformers import set_seed

    from qwen_vl.data.collator import ConversationCollator
    from qwen_vl.training import engines, loading, outset, resume_settings, saving, trainer, tuning, vision_cache

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("qwen_vl").setLevel(logging.INFO if train_args.process_index == 0 else logging.ERROR)
    output_dir, name = train_args.output_dir, model_args.model_name_or_path
    name = os.path.abspath(name) if os.path.isdir(name) else name  # recorded with an adapter, so good from anywhere
    outset.check_steps(train_args.max_steps)
    saving.check_writable(output_dir)
    resume_from = checkpoint_to_resume(train_args)
    settled = resume_settings.settle(resume_from, parsed, anew=train_args.ignore_data_skip)
    config = loading.load_config(name, train_args.cache_dir)
    tokenizer = tokenizer_for(name, config, lora_args.lora_weight_path, train_args)
    kind, rates, base, lines = rehearse(
        name, config, lora_args, train_args, resume_from=resume_from, cache_folder=data_args.vision_cache
    )
    settings = arguments.changed(*parsed)
    if is_finished(resume_from, train_args, settings, settled):
        return
    train_data, eval_data = datasets(data_args, train_args, tokenizer, resume_from)
    outset.check(train_data, train_args, lines, checkpoint=resume_from)
    settled.report()

    set_seed(train_args.seed)
    dtype = tuning.compute_dtype(bf16=train_args.bf16, fp16=train_args.fp16)
    model = loading.load_model(
        name,
        dtype=dtype,
        attn_implementation=model_args.attn_implementation,
        cache_dir=train_args.cache_dir,
        quantization=kind,
        device=train_args.device,
    )
    model, start = made_trainable(model, lora_args, train_args, tokenizer, dtype)
    lines = tuning.rows(model, rates=rates, weight_decay=train_args.weight_decay)
    if train_args.process_index == 0:
        print(tuning.table(lines), file=sys.stderr)

    under = base if train_args.use_lora else None  # of an adapter, with which it is saved
    tower = {"name": name, "dtype": dtype, "cache_dir": train_args.cache_dir}
    features = vision_cache.opened(data_args.vision_cache, model, **tower, is_sharded=engines.is_sharded(train_args))
    run_trainer = trainer.QWenTrainer(
        model=model,
        args=train_args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=ConversationCollator(tokenizer, config.visual["image_size"], vision_cache=features),
        vision_cache=features,
        tokenizer=tokenizer,
        base=under,
        made_with={"base": base, "settings": settled.settings, "resumed": settled.resumed},
        rates=rates,
        source_names=train_data.names,
        is_weighted=train_data.is_weighted or bool(eval_data and eval_data.is_weighted),
    )
    run_trainer.train(resume_from_checkpoint=resume_from)
    run_trainer.exit_if_stopped()
    weights = engines.whole_weights(run_trainer)
    if run_trainer.is_world_process_zero():
        with saving.naming(output_dir):
            run_trainer.save_state()
            saving.save_final(model, tokenizer, output_dir, dtype=dtype, base=under, weights=weights, start=start)
            made_with = {"settings": settings, "resumed": settled.resumed, "base": under or {"name": name}}
            write_records(output_dir, data_args, trained=lines, made_with=made_with)
        print(f"saved to {output_dir}", file=sys.stderr)
    run_trainer.check_trained()


def made_trainable(model, lora, training, tokenizer, dtype):
    """(model, `adapters.starting_point` or None): with adapters, or unfrozen, as the flags say."""
    from qwen_vl.training import adapters, tuning

    if training.use_lora:
        new_tokens = tokenizer.convert_tokens_to_ids(training.new_special_tokens or [])
        model = adapted(model, lora, new_tokens)
        if training.activation_checkpointing:
            model.enable_input_require_grads()
    else:
        model = tuning.freeze_for_full(model, fix_vit=training.fix_vit)
    start = adapters.starting_point(model) if training.use_lora else None
    # DeepSpeed keeps float32 copies itself.
    return tuning.train_in(model, dtype) if training.deepspeed else tuning.train_in_float32(model), start


def write_records(output_dir, data, *, trained, made_with):
    """Write what a finished run says of itself: report.html, and run.json last, by which it is known to be finished.

    data: DataArguments. trained: `tuning.rows`. made_with: {"settings", "resumed", "base"} as `record.write` has them.
    """
    from qwen_vl.data import streaming
    from qwen_vl.training import record, report

    if data.streaming:
        streaming.report(Path(output_dir, "overlength.jsonl"))
    report.write(output_dir, settings=made_with["settings"] | record.earlier(made_with), trained=trained)
    record.write(output_dir, data_path=data.data_path, eval_data_path=data.eval_data_path, **made_with)


def datasets(data, training, tokenizer, resume_from):
    """(training data, evaluation data or None) as the DataArguments and TrainingArguments say.

    What the length limit did stands in OUT/overlength.jsonl; there is no such file if it did nothing.
    """
    from qwen_vl.data import loading, mixing
    from qwen_vl.data.packing import PackedDataset

    seed = training.seed if training.data_seed is None else training.data_seed
    reading = {
        "image_folder": data.image_folder,
        "max_length": training.model_max_length,
        "overlength": data.overlength,
        "loss_on": data.loss_on,
        "control_tokens": data.allow_control_tokens,
    }
    caching = {"cache": data.tokenized_cache, "lazy": data.lazy_preprocess}
    mixing_as = {"mix": data.mix, "seed": seed, "skip_manifests": data.skip_manifest or ()}
    packing = {"max_length": training.model_max_length, "max_pictures": data.max_pictures_per_row}
    packing = packing if data.packing == "auto" else None
    sources, overlength = mixing.parse_sources(data.data_path), Path(training.output_dir, "overlength.jsonl")
    if training.process_index == 0:
        overlength.unlink(missing_ok=True)  # of an earlier run
    eval_data = data.eval_data_path and loading.load_file(data.eval_data_path, tokenizer, **caching, **reading)
    if not data.streaming:
        train_data = loading.load(sources, tokenizer, **mixing_as, **caching, **reading)
        if train_data.overlength and training.process_index == 0:
            text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in train_data.overlength)
            overlength.parent.mkdir(parents=True, exist_ok=True)
            overlength.write_text(text, encoding="utf-8")
        if packing:
            train_data = PackedDataset(train_data, **packing, seed=seed)
        return train_data, eval_data
    train_data = loading.stream(
        sources,
        tokenizer,
        **mixing_as,
        **reading,
        rank=training.process_index,
        world_size=training.world_size,
        buffer_size=data.shuffle_buffer,
        overlength_path=overlength,
        packing=packing,
        batch_size=training.train_batch_size,
        num_seen=0 if training.ignore_data_skip else samples_seen(resume_from, training),
    )
    return train_data, eval_data


def tokenizer_for(name, config, adapter_dir, training):
    """The tokenizer of a checkpoint, or of the adapter that is continued on it, with the new tokens of this run."""
    from qwen_vl.training import loading, saving

    if adapter_dir:
        return saving.load_tokenizer(adapter_dir, name, config, training.cache_dir)
    return loading.load_tokenizer(name, config, training.cache_dir, extra_tokens=training.new_special_tokens)


def rehearse(name, config, lora, training, *, resume_from=None, cache_folder=None):
    """(kind of quantisation or None, tuning.Rates, base as `base_of`, tuning.rows) of a run, without any weights.

    What the flags, the checkpoint and an adapter folder cannot do together is an error here, before anything is loaded.
    """
    import torch

    from qwen_vl.training import (
        adapters,
        arguments,
        engines,
        loading,
        outset,
        quantization,
        resume_settings,
        saving,
        tuning,
        vision_cache,
    )

    kind = quantization.chosen_kind(config, lora.quantization, name, default="nf4" if lora.q_lora else None)
    adapters.check_base(
        kind,
        lora=training.use_lora,
        use_dora=lora.use_dora,
        start=lora.init_lora_weights,
        bias=lora.lora_bias,
        in_parts=engines.is_sharded(training),
        recast=training.fp16_full_eval or training.bf16_full_eval,
    )
    loading.check_files(name, training.cache_dir)
    rates = tuning.Rates(
        training.learning_rate, training.vision_lr, training.resampler_lr, lora.lora_lr, lora.loraplus_lr_ratio
    )
    model = loading.skeleton(name, config, training.cache_dir)
    with torch.device("meta"):
        if lora.lora_weight_path:
            saving.recorded_base(lora.lora_weight_path)  # an error without an adapter
            asked = None if lora.lora_r == arguments.LoraArguments.lora_r else lora.lora_r
            model = adapters.rehearsed(lora.lora_weight_path, model, r=asked)
        elif training.use_lora:
            whole = tuning.whole_modules(model, lora.modules_to_save) or ()
            adapters.check_whole(model, whole, kind)
            model = adapted(model, replace(lora, init_lora_weights="default"))  # the others need the weights
            adapters.check_rows(adapters.trained_rows(training.new_special_tokens or (), whole), model)
        else:
            model = tuning.freeze_for_full(model, fix_vit=training.fix_vit)
    lines = tuning.rows(model, rates=rates, weight_decay=training.weight_decay)
    vision_cache.check_frozen(cache_folder, model, is_sharded=engines.is_sharded(training))
    outset.check_optimizer(training, model)
    base = base_of(name, kind, lora.lora_weight_path, training.cache_dir)
    if resume_from:
        dtype = tuning.compute_dtype(bf16=training.bf16, fp16=training.fp16)
        resume_settings.check(resume_from, model, dtype=dtype, base=base)
    return kind, rates, base, lines


def is_finished(resume_from, training, settings, settled):
    """Whether the run that a checkpoint belongs to has its result already; says so, and which settings do nothing."""
    from qwen_vl.training import checkpoints, resume_settings

    newest = checkpoints.is_automatic(training.resume_from_checkpoint)
    last = resume_from or next(iter(checkpoints.found(training.output_dir) if newest else ()), None)
    if last is None:
        return False
    ends = {"max_steps": training.max_steps, "num_train_epochs": training.num_train_epochs}
    ends |= {"newest": newest, "resumable": resume_from is not None}
    if not resume_settings.is_finished(training.output_dir, last, settings, **ends):
        return False
    if training.process_index == 0:
        state = checkpoints.read_json(last, checkpoints.TRAINER_STATE)
        print(
            f"already finished (step {state['global_step']} of {state['max_steps']}); nothing trained, and "
            f"{training.output_dir} is as it was; more --num_train_epochs or --max_steps make the run longer, "
            "--resume false or another --output_dir begins a new one"
            + (f". Without effect: {settled.said()}" if settled.applied else ""),
            file=sys.stderr,
        )
    return True


def base_of(name, kind, adapter_dir, cache_dir):
    """{"name", "fingerprint", "quantization"} of the base of a run; ValueError if `adapter_dir` has another."""
    from qwen_vl.training import loading, saving

    base = {"name": name, "fingerprint": loading.fingerprint(name, cache_dir)}
    if adapter_dir:
        saving.check_base(adapter_dir, **base)
    return base | {"quantization": kind}


def adapted(model, lora, new_tokens=()):
    """The model with the adapters that the LoraArguments describe: a folder's, continued, or new ones."""
    from qwen_vl.training import tuning

    if lora.lora_weight_path:
        return tuning.load_adapters(model, lora.lora_weight_path, trainable=True)
    return tuning.add_adapters(
        model,
        r=lora.lora_r,
        alpha=lora.lora_alpha,
        dropout=lora.lora_dropout,
        targets=lora.lora_target_modules,
        bias=lora.lora_bias,
        modules_to_save=tuning.whole_modules(model, lora.modules_to_save),
        new_tokens=new_tokens,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if lora.init_lora_weights == "default" else lora.init_lora_weights,
    )


def checkpoint_to_resume(training):
    """The checkpoint folder that the run goes on from, or None, as --resume_from_checkpoint says."""
    from qwen_vl.training import checkpoints

    return checkpoints.to_resume(training.output_dir, training.resume_from_checkpoint)


def samples_seen(checkpoint, training):
    """Samples, or packed rows, that all ranks had taken from a stream when a checkpoint was written; 0 without one."""
    from qwen_vl.training import checkpoints

    if checkpoint is None:
        return 0
    state = checkpoints.run_state(checkpoint)
    per_step = training.train_batch_size * training.world_size * training.gradient_accumulation_steps
    return state["data"]["seen"] if "data" in state else state["step"] * per_step


if __name__ == "__main__":
    run(main)
