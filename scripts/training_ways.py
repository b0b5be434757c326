"""The ways of training that scripts/benchmark_training.py compares: the original's, ours, and a bare loop."""

import time

import torch
from benchmark_data import padded
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from qwen_vl.adapters import build as adapters_build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading
from qwen_vl.data import conversations
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.collator import HOST_KEYS, ConversationCollator
from qwen_vl.data.dataset import ConversationDataset
from qwen_vl.data.packing import PackedDataset, PackOptions
from qwen_vl.families import v1 as family
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.training import trainer, tuning
from qwen_vl.training.flags import arguments
from qwen_vl.training.monitor import flops
from qwen_vl.training.monitor import throughput as monitor_throughput

BATCH = 4  # samples of a step in the original's way; rows of a step where the trainer is compared with the bare loop


def loaded(name, method, **options):
    """Load a model in training mode, with the trainable parameters of `full` or `lora`."""
    model = loading.load_model(name, **options)
    if method == "full":
        return tuning.freeze_for_full(model, fix_vit=True).train()
    return adapters_build.add_adapters(model, LoraOptions(dropout=0.0)).train()


def dataset(path, tokenizer, length):
    """Return the data set of a conversation file."""
    dirs = conversations.search_dirs(path)
    return ConversationDataset(conversations.read(path), tokenizer, EncodeOptions(length), search_dirs=dirs)


def optimizer_for(model, **kind):
    """Build AdamW over the trainable parameters."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, **kind)


def update(model, optimizer, loss):
    """Run the backward pass, gradient clipping and the optimizer step, which are the same in every way."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def loss_of_all_logits(model, batch, images):
    """Return the loss from the logits of all positions, freed before the backward pass as in the original."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    logits = model(**inputs, pixel_values=images, use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].reshape(-1))


def reference_way(model, samples, tokenizer, length, steps):
    """Return (tokens of samples, seconds) of steps like the original's, without the overhead of its trainer."""
    size, optimizer, tokens = family.image_size(model.config), optimizer_for(model, foreach=False), 0
    collator = ConversationCollator(tokenizer, size)
    start = time.perf_counter()
    for step in range(steps):
        chosen = [samples[index % len(samples)] for index in range(BATCH * step, BATCH * (step + 1))]
        batch = padded(collator([sample | {"images": []} for sample in chosen]), length, tokenizer.pad_token_id)
        images = [pixels(read_image(image), size) for sample in chosen for image in sample["images"]]
        update(model, optimizer, loss_of_all_logits(model, batch, torch.stack(images)))
        tokens += sum(batch["lengths"])
    return tokens, time.perf_counter() - start


def rows_of(samples, length, most):
    """Return packed rows, `most` of them at the most. A row of 2048 tokens holds about as many samples as BATCH."""
    rows = PackedDataset(samples, PackOptions(length))
    rows.rows, rows.lengths, rows.num_images = rows.rows[:most], rows.lengths[:most], rows.num_images[:most]
    return rows


def train(model, rows, tokenizer, folder, *, features=None, epochs=1, workers=1, batch=1):
    """Return {epoch: (tokens, seconds)} of a run of our trainer over the rows, without its first step."""
    words = ["--data_path", "none", "--output_dir", str(folder), "--use_cpu", "--num_train_epochs", str(epochs)]
    words += ["--per_device_train_batch_size", str(batch), "--save_strategy", "no", "--logging_steps", "1"]
    words += ["--learning_rate", "1e-5", "--dataloader_num_workers", str(workers), "--packing", "auto"]
    words += ["--disable_tqdm", "True"]
    training = arguments.parse(words)[3]
    collator = ConversationCollator(tokenizer, family.image_size(model.config), vision_cache=features)
    run_trainer = trainer.QWenTrainer(
        model=model,
        args=training,
        train_dataset=rows,
        data_collator=collator,
        tokenizer=tokenizer,
        vision_cache=features,
    )
    run_trainer.pop_callback(trainer.ProgressBar)
    clock = Clock()
    run_trainer.add_callback(clock)
    run_trainer.train()
    steps = [entry for entry in run_trainer.state.log_history if "loss" in entry]
    measured = {}
    for entry, before, after in zip(steps[1:], clock.moments[:-1], clock.moments[1:], strict=True):
        epoch = int(entry["epoch"] - 1e-6) + 1
        tokens, seconds = measured.get(epoch, (0, 0.0))
        measured[epoch] = tokens + entry["tokens_per_second"] * entry["step_seconds"], seconds + after - before
    return measured


class Clock(TrainerCallback):
    """Times at which steps end; the time between two of them includes everything the trainer does, also logging."""

    def __init__(self):
        self.moments = []

    def on_step_end(self, args, state, control, **kwargs):
        self.moments.append(time.perf_counter())


def bare_loop(model, rows, tokenizer):
    """Return (tokens a second, MFU) of a minimal loop over the rows of `train`, without its first step."""
    collator = ConversationCollator(tokenizer, family.image_size(model.config))
    optimizer, meter = optimizer_for(model, fused=True), monitor_throughput.SpeedMeter(model, "cpu", torch.float32)
    tokens = started = 0

    for batch in DataLoader(rows, batch_size=BATCH, shuffle=True, collate_fn=collator):
        inputs = {key: value for key, value in batch.items() if key not in HOST_KEYS}
        update(model, optimizer, model(**inputs, use_cache=False).loss)
        if started:
            tokens += sum(batch["segment_lengths"])
            meter.add(batch)
        started = started or time.perf_counter()
    seconds = time.perf_counter() - started
    flops.measured_peak.cache_clear()  # measured right after the loop, under the same load
    peak = flops.measured_peak(torch.device("cpu"), torch.float32)
    return tokens / seconds, meter.operations() / seconds / peak


def rate(measured):
    """Return the tokens a second of (tokens, seconds)."""
    tokens, seconds = measured
    return tokens / seconds
