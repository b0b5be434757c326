"""Fine-tune a Qwen-VL checkpoint on conversations with pictures: the story of one run.

    python finetune.py [config.yaml] --model_name_or_path MODEL --data_path DATA.json --output_dir OUT [--use_lora] ..

`python finetune.py --help` lists every flag.
"""

import json
import logging
import os
import sys
from pathlib import Path

from qwen_vl.entry import run


def main(argv=None):
    """Train as the command line `argv` says; the trained model or adapter is then in --output_dir. Returns None."""
    from qwen_vl.training import arguments

    model_args, data_args, lora_args, train_args = arguments.parse(argv)
    # Heavy imports come after the flags are known to be right, so that a typo costs no half minute.
    from transformers import set_seed

    from qwen_vl.data import conversations
    from qwen_vl.data.collator import ConversationCollator
    from qwen_vl.data.dataset import ConversationDataset
    from qwen_vl.training import loading, saving, trainer, tuning

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    loading.quiet_libraries()
    output_dir, name = train_args.output_dir, model_args.model_name_or_path
    name = os.path.abspath(name) if os.path.isdir(name) else name  # recorded with an adapter, so good from anywhere
    saving.check_writable(output_dir)
    resume_from = trainer.checkpoint_to_resume(output_dir, train_args.resume_from_checkpoint)
    config = loading.load_config(name, train_args.cache_dir)
    tokenizer = loading.load_tokenizer(name, config, train_args.cache_dir)

    def dataset(path, skip_manifest=None):
        return path and ConversationDataset(
            conversations.read(path, image_folder=data_args.image_folder, skip_manifest=skip_manifest),
            tokenizer,
            max_length=train_args.model_max_length,
            lazy=data_args.lazy_preprocess,
            search_dirs=conversations.search_dirs(path, data_args.image_folder),
            control_tokens=data_args.allow_control_tokens,
        )

    train_data = dataset(data_args.data_path, data_args.skip_manifest)
    eval_data = dataset(data_args.eval_data_path)
    write_overlength(train_data, output_dir)

    base = base_of(name, lora_args.lora_weight_path, train_args.cache_dir) if train_args.use_lora else None
    set_seed(train_args.seed)
    dtype = tuning.compute_dtype(bf16=train_args.bf16, fp16=train_args.fp16)
    model = loading.load_model(
        name, dtype=dtype, attn_implementation=model_args.attn_implementation, cache_dir=train_args.cache_dir
    )
    if train_args.use_lora:
        model = adapted(model, lora_args)
        if train_args.activation_checkpointing:
            model.enable_input_require_grads()
    else:
        model = tuning.freeze_for_full(model, fix_vit=train_args.fix_vit)
    model = tuning.train_in_float32(model)
    lines = tuning.rows(model, learning_rate=train_args.learning_rate, weight_decay=train_args.weight_decay)
    print(tuning.table(lines), file=sys.stderr)

    run_trainer = trainer.QWenTrainer(
        model=model,
        args=train_args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=ConversationCollator(tokenizer, config.visual["image_size"]),
        tokenizer=tokenizer,
        base=base,
    )
    run_trainer.train(resume_from_checkpoint=resume_from)
    if run_trainer.is_world_process_zero():
        run_trainer.save_state()
        saving.save_final(model, tokenizer, output_dir, dtype=dtype, base=base)
        print(f"saved to {output_dir}", file=sys.stderr)


def base_of(name, adapter_dir, cache_dir):
    """{"name", "fingerprint"} of the weights under an adapter; ValueError if that of `adapter_dir` has another base."""
    from qwen_vl.training import loading, saving

    base = {"name": name, "fingerprint": loading.fingerprint(name, cache_dir)}
    if adapter_dir:
        saving.check_base(adapter_dir, **base)
    return base


def adapted(model, lora):
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
    )


def write_overlength(dataset, output_dir):
    """List every sample that was trimmed or dropped in OUT/overlength.jsonl; no file if there is none."""
    file = Path(output_dir, "overlength.jsonl")
    file.unlink(missing_ok=True)  # of an earlier run
    if dataset.overlength:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in dataset.overlength)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
