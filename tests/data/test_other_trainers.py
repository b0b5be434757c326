"""Our data set and collator in other training loops: transformers' Trainer, a plain loop, accelerate, datasets."""

import json

import datasets
import pytest
import torch
from accelerate import Accelerator
from helpers import runs
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from qwen_vl.checkpoint import loading as checkpoints
from qwen_vl.data import build
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.collator import ConversationCollator
from qwen_vl.data.packing import PackedDataset, PackOptions
from qwen_vl.training import tuning

OPTIMIZER = {"learning_rate": 1e-3, "adam_beta2": 0.95, "lr_scheduler_type": "cosine", "max_steps": 4}


@pytest.fixture
def parts(make_checkpoint, tmp_path):
    """Return (model, data set, collator) as a user builds them for a training loop of their own."""
    tokenizer = checkpoints.load_tokenizer(make_checkpoint())
    model = tuning.freeze_for_full(checkpoints.load_model(make_checkpoint()), fix_vit=True)
    return model, samples_of(runs.write_data(tmp_path), tokenizer), ConversationCollator(tokenizer, 64)


def samples_of(path, tokenizer):
    reading = build.SourceOptions(cache="none", image_folder=runs.GOLDEN)
    return build.load_file(path, tokenizer, EncodeOptions(2048), reading)


def trained(tmp_path, model, dataset, collator, **settings):
    """Return the losses of transformers' own Trainer with its defaults, apart from those in `OPTIMIZER`."""
    settings = {"per_device_train_batch_size": 2, "train_sampling_strategy": "sequential"} | settings
    args = TrainingArguments(
        output_dir=str(tmp_path / "theirs"), logging_steps=1, save_strategy="no", use_cpu=True, **OPTIMIZER, **settings
    )
    trainer = Trainer(model=model, args=args, train_dataset=dataset, eval_dataset=dataset, data_collator=collator)
    trainer.train()
    evaluated = trainer.evaluate()["eval_loss"]
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], evaluated


@pytest.mark.parametrize("accumulated", [1, 2])
def test_transformers_trainer_with_its_defaults_trains_as_ours(make_checkpoint, tmp_path, parts, accumulated):
    """Keep id, images and weight, which it would remove because `forward` does not name them."""
    batch = {"per_device_train_batch_size": 2 // accumulated, "gradient_accumulation_steps": accumulated}
    theirs, evaluated = trained(tmp_path, *parts, **batch)
    ours = runs.train(
        make_checkpoint(),
        tmp_path / "ours",
        **OPTIMIZER,
        **batch,
        train_sampling_strategy="sequential",
        optim="adamw_torch",
    )
    assert theirs == pytest.approx(runs.losses(ours), abs=2e-5)
    assert 0 < evaluated < theirs[0]


def test_packed_rows_train_there_too(tmp_path, parts):
    model, dataset, collator = parts
    losses, _ = trained(
        tmp_path, model, PackedDataset(dataset, PackOptions(300)), collator, per_device_train_batch_size=1
    )
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_weights_of_samples_are_refused_where_they_would_be_lost(tmp_path, parts):
    model, _, collator = parts
    path = tmp_path / "data.json"
    path.write_text(json.dumps([record | {"weight": 2} for record in json.loads(path.read_text())]))
    tokenizer = checkpoints.load_tokenizer(model.name_or_path)
    with pytest.raises(ValueError, match="loss_weights: the loss of this model weighs all targets alike"):
        trained(tmp_path, model, samples_of(path, tokenizer), collator)


def test_a_table_of_datasets_needs_its_columns(tmp_path, parts):
    model, dataset, collator = parts
    table = datasets.Dataset.from_list([dict(dataset[index]) for index in range(len(dataset))])
    with pytest.raises(ValueError, match=r"without 'id', 'images', 'weight': .*remove_unused_columns=False"):
        trained(tmp_path, model, table, collator)
    theirs, _ = trained(tmp_path, model, table, collator, remove_unused_columns=False)
    assert len(theirs) == 4


def test_a_loop_of_your_own(parts):
    """Train with torch's DataLoader, with workers, and with that of accelerate: both see the same batches."""
    model, dataset, collator = parts
    first = DataLoader(dataset, batch_size=2, collate_fn=collator, num_workers=1)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model, optimizer, loader = accelerator.prepare(
        model.train(), optimizer, DataLoader(dataset, batch_size=2, collate_fn=collator)
    )
    losses = []
    for ours, batch in zip(first, loader, strict=True):
        assert torch.equal(ours["input_ids"], batch["input_ids"]) and ours["ids"] == batch["ids"]
        losses.append(model(**batch).loss)
        accelerator.backward(losses[-1])
        optimizer.step()
        optimizer.zero_grad()
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_a_sample_reads_like_a_dict(parts):
    _, dataset, _ = parts
    sample = dataset[0]
    assert set(sample) == {"id", "input_ids", "labels", "images", "weight"} and sample == dict(sample)
    assert {**sample}["id"] == sample["id"] and (sample | {"source": 1})["source"] == 1
