"""Whole runs of finetune.main: their files, their reports, and when they stop."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers import runs
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoProcessor

from qwen_vl.checkpoint import loading
from qwen_vl.files import read_entries
from qwen_vl.training.monitor import step_profiler


@pytest.mark.parametrize("fix_vit", [True, False])
def test_full_training_learns_and_leaves_a_standalone_model(make_checkpoint, tmp_path, fix_vit):
    out = runs.train(
        make_checkpoint(), tmp_path / "out", fix_vit=fix_vit, max_steps=12, learning_rate=5e-3, weight_decay=0.1
    )
    losses = runs.losses(out)
    assert losses[-1] < losses[0] - 1
    before, after = runs.weights(make_checkpoint()), runs.weights(out)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {"transformer.visual.attn_pool.pos_embed"}
    if fix_vit:
        frozen |= {name for name in before if ".visual." in name and ".attn_pool." not in name}
    assert moved == before.keys() - frozen
    config, origin = (json.loads((folder / "config.json").read_text()) for folder in (out, make_checkpoint()))
    assert config == origin
    tokenizer, origin = (json.loads((f / "tokenizer_config.json").read_text()) for f in (out, make_checkpoint()))
    assert tokenizer.keys() - origin.keys() == {"processor_class"}
    assert json.loads((out / "generation_config.json").read_text())["chat_format"] == "chatml"
    assert (out / "modeling_qwen.py").is_file() and AutoProcessor.from_pretrained(out).tokenizer.image_span_tokens == 16
    assert not list(out.glob(".*"))


def test_a_base_model_learns_the_chat_format(make_checkpoint, tmp_path):
    out = runs.train(make_checkpoint("raw"), tmp_path / "out", "--save_strategy", "steps", max_steps=1)
    for folder in (out, out / "checkpoint-1"):
        assert json.loads((folder / "generation_config.json").read_text())["chat_format"] == "chatml"


@pytest.mark.parametrize(
    ("chat_format", "flags", "whole"),
    [
        ("chatml", [], set()),
        ("raw", [], {"transformer.wte.weight", "lm_head.weight"}),
        ("raw", ["--modules_to_save", "none"], set()),
        ("chatml", ["--modules_to_save", "ln_f"], {"transformer.ln_f.weight"}),
        ("chatml", ["--lora_bias", "lora_only"], {f"transformer.h.{i}.attn.c_attn.bias" for i in (0, 1)}),
    ],
    ids=["chat", "base", "base none", "chat ln_f", "lora_only"],
)
def test_an_adapter_holds_everything_that_trained(make_checkpoint, tmp_path, chat_format, flags, whole):
    """Check that modules which train whole are saved as well, and that a reloaded adapter has all weights."""
    base = make_checkpoint(chat_format)
    out = runs.train(base, tmp_path / "out", "--use_lora", *flags, save_strategy="steps", learning_rate=1e-2)
    assert runs.equal(runs.weights(out), runs.weights(out / "checkpoint-4"))
    adapter = {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in runs.weights(out)}
    assert {name for name in adapter if ".lora_" not in name} == whole
    merged = PeftModel.from_pretrained(loading.load_model(base), out).merge_and_unload().state_dict()
    targets = {
        f"transformer.h.{i}.{name}.weight"
        for i in (0, 1)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2")
    }
    before = runs.weights(base)
    assert {name for name in before if not torch.equal(before[name], merged[name])} == targets | whole


def test_an_adapter_is_continued(make_checkpoint, tmp_path):
    base = make_checkpoint("raw")
    first = runs.train(base, tmp_path / "first", "--use_lora", "--lora_bias", "all")
    still = runs.train(base, tmp_path / "still", "--use_lora", lora_weight_path=first, learning_rate=0, max_steps=1)
    assert runs.equal(runs.weights(first), runs.weights(still))
    on = runs.train(base, tmp_path / "on", "--use_lora", lora_weight_path=first)
    before, after = runs.weights(first), runs.weights(on)
    assert before.keys() == after.keys() and all(not torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_of_another_base_is_not_continued(make_checkpoint, tmp_path):
    first = runs.train(make_checkpoint("raw"), tmp_path / "first", "--use_lora", max_steps=1)
    other = runs.train(make_checkpoint("raw"), tmp_path / "other", max_steps=1)
    with pytest.raises(ValueError, match=r"not the weights that .*first was trained on"):
        runs.train(other, tmp_path / "on", "--use_lora", lora_weight_path=first)


def test_bfloat16(make_checkpoint, tmp_path):
    """Check that trained weights are float32 in checkpoints, since steps are small, and bfloat16 in the result."""
    out = runs.train(make_checkpoint(), tmp_path / "full", bf16=True, save_strategy="steps", max_steps=2)
    stored, resumable = runs.weights(out), runs.weights(out / "checkpoint-2")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert resumable["lm_head.weight"].dtype == torch.float32
    assert resumable["transformer.visual.conv1.weight"].dtype == torch.bfloat16
    adapter = runs.weights(runs.train(make_checkpoint(), tmp_path / "lora", "--use_lora", bf16=True, max_steps=1))
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}


@pytest.mark.parametrize("lora", [(), ("--use_lora",)], ids=["full", "lora"])
def test_the_best_checkpoint_is_kept_and_becomes_the_result(make_checkpoint, tmp_path, lora):
    """Check it with a metric for which the worst is the best, so that an early checkpoint is chosen."""
    out = runs.train(
        make_checkpoint(),
        tmp_path / "out",
        *("--load_best_model_at_end", *lora),
        eval_data_path=runs.write_data(tmp_path),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        max_steps=6,
        greater_is_better=True,
        learning_rate=0.02,
    )
    state = json.loads((out / "trainer_state.json").read_text())
    scores = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    best = max(scores, key=scores.get)
    assert len(scores) == 6 and best < 5, "the run is meant to learn"
    assert {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-6"}
    assert Path(state["best_model_checkpoint"]) == out / f"checkpoint-{best}"
    assert runs.equal(runs.weights(out), runs.weights(out / f"checkpoint-{best}"))


def test_the_newest_checkpoint_is_found_and_old_ones_are_deleted(make_checkpoint, tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    out = runs.train(make_checkpoint(), tmp_path / "out", **settings, resume_from_checkpoint=True, max_steps=3)
    assert "no checkpoint to resume from yet" in caplog.text
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    runs.train(make_checkpoint(), tmp_path / "out", **settings, resume_from_checkpoint=True, max_steps=4)
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    assert len(runs.losses(out)) == 4
    metrics = read_entries(out / "metrics.jsonl")
    assert [entry["step"] for entry in metrics if "loss" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in metrics if "train_runtime" in entry] == [4]


def test_a_run_reports_itself(make_checkpoint, tmp_path, monkeypatch, capsys):
    """Check that offline wandb, tensorboard, files and the terminal get the same numbers."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    runs.train(
        make_checkpoint(),
        tmp_path / "out",
        *("--report_to", "wandb", "tensorboard"),
        logging_dir=tmp_path / "board",
        max_steps=2,
        sample_phases_every=1,
    )
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    logged = [entry for entry in read_entries(tmp_path / "out" / "metrics.jsonl") if "loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    board = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents*")).parent)).Reload()
    for key in logged[0].keys() - {"step", "time", "epoch"}:
        shown = [event.value for event in board.Scalars(f"train/{key}")]
        assert shown == pytest.approx([entry[key] for entry in logged]), key
    for entry in logged:
        assert entry["samples_per_second"] == pytest.approx(2 / entry["step_seconds"], rel=0.1)
        assert 0 <= entry["padding"] < 1 and 0 < entry["mfu"] < 2 and 0.1 < entry["memory_gib"] < 50
        times = {phase: entry[f"time/{phase}"] for phase in step_profiler.PHASES}
        assert 0.5 < sum(times.values()) / entry["step_seconds"] < 1.2 and times["communication"] == 0
        assert all(times[phase] > 0 for phase in times if phase != "communication"), times
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 6 and "18,432" in page and "--sample_phases_every" in page and "http" not in page
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(r"^resampler +yes +18,432 +0\.001 +0 +decay$", shown.err, flags=re.MULTILINE)
    line = r"^step 2/2  loss \d\.\d{4}  lr 5\.00e-04  tokens/s \d+  samples/s \d+\.\d\d  waiting for data \d+%  padding"
    assert re.search(line, shown.err, flags=re.MULTILINE)
    for noise in ("Loading weights", "Writing model", "[transformers]", "Warning", "it/s"):
        assert noise not in shown.err


def test_over_long_samples_are_listed(make_checkpoint, tmp_path):
    out = runs.train(make_checkpoint(), tmp_path / "out", max_steps=1, model_max_length=90)
    listed = [json.loads(line) for line in (out / "overlength.jsonl").read_text().splitlines()]
    assert listed and all(entry["length"] > 90 and entry["action"] == "dropped" for entry in listed)
    runs.train(make_checkpoint(), out, max_steps=1)
    assert not (out / "overlength.jsonl").exists()
