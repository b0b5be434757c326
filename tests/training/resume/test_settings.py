"""A run resumed with other flags: those that apply, those that are kept with a warning, errors, and finished runs."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from helpers import runs

from qwen_vl.export import card
from qwen_vl.files import read_entries
from qwen_vl.training.flags import arguments
from qwen_vl.training.resume import settings as resume_settings

LORA = ("--use_lora", "--lora_r", "4", "--lora_dropout", "0.1")
AUTO = ("--resume", "auto")
STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def lora_run(make_checkpoint, tmp_path_factory):
    """Return the output folder of a finished run of 4 steps, with a checkpoint after each. Do not write into it."""
    return runs.train(make_checkpoint(), tmp_path_factory.mktemp("lora") / "out", *LORA, **STEPS)


@pytest.fixture
def stopped(lora_run, tmp_path):
    """Return a copy of that run, stopped after step 2."""
    return stopped_at(shutil.copytree(lora_run, tmp_path / "out"), 2)


def stopped_at(out, step):
    for path in [path for path in out.iterdir() if path.name not in {f"checkpoint-{n}" for n in range(step + 1)}]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return out


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def settings_of(folder):
    return json.loads((folder / "run.json").read_text())["settings"]


OTHER_RATES = {
    "learning_rate": 0.5,
    "weight_decay": 0.7,
    "adam_beta1": 0.1,
    "adam_epsilon": 0.1,
    "lr_scheduler_type": "constant",
    "warmup_steps": 3,
    "max_grad_norm": 1e-3,
}


def test_how_a_run_learns_stays_and_every_record_says_so(lora_run, stopped, make_checkpoint, capsys, caplog):
    flags = ("--lora_lr", "0.3", "--loraplus_lr_ratio", "16")
    runs.train(make_checkpoint(), stopped, *LORA, *AUTO, *flags, **STEPS | OTHER_RATES)
    assert runs.losses(stopped) == runs.losses(lora_run)
    assert runs.losses(stopped, "learning_rate") == runs.losses(lora_run, "learning_rate")
    assert runs.equal(runs.weights(stopped), runs.weights(lora_run))
    used, before = settings_of(stopped), settings_of(lora_run)
    assert (
        used | {"data_path": None} == before | {"data_path": None}
        and used["learning_rate"] == 1e-3
        and "weight_decay" not in used
    )
    for page in (stopped / "report.html").read_text(), card.text(card.read(stopped), "t"):
        assert "0.001" in page and "weight_decay" not in page and "constant" not in page
    assert re.search(r"lora on decoder +yes +5,120 +0\.001 +0 +decay", capsys.readouterr().err)
    (line,) = [text for text in caplog.messages if "do not apply" in text]
    assert "--learning_rate 0.5 (the checkpoint's: 0.001)" in line and "--lr_scheduler_type constant" in line
    assert all(f"--{flag} " in line for flag in (*OTHER_RATES, "lora_lr", "loraplus_lr_ratio"))


def test_what_applies_is_named_and_recorded(stopped, make_checkpoint, caplog):
    other = {"logging_steps": 2, "save_steps": 3, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    runs.train(make_checkpoint(), stopped, *LORA, *AUTO, **STEPS | other)
    (line,) = [text for text in caplog.messages if "apply from here on" in text]
    assert "--per_device_train_batch_size 1 (was 2)" in line and "--save_steps 3 (was 1)" in line
    assert "num_workers" not in line and not any("do not apply" in text for text in caplog.messages)
    record = json.loads((stopped / "run.json").read_text())
    assert record["settings"]["per_device_train_batch_size"] == 1
    assert record["resumed"][0]["step"] == 2
    assert record["resumed"][0]["applied"]["per_device_train_batch_size"] == [2, 1]
    assert "per_device_train_batch_size until step 2 | 2 |" in card.text(record, "t")
    assert "per_device_train_batch_size until step 2" in (stopped / "report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--lora_alpha", "128"), "--lora_alpha 128 (the checkpoint's: 16)"),
        (("--lora_r", "8"), "--lora_r 8 (the checkpoint's: 4)"),
        (("--lora_dropout", "0"), "--lora_dropout 0 (the checkpoint's: 0.1)"),
        (("--lora_target_modules", "c_attn"), "--lora_target_modules c_attn (the checkpoint's: attn.c_proj c_attn w1"),
        (("--modules_to_save", "ln_f"), "--modules_to_save ln_f (the checkpoint's: None)"),
        (("--lora_bias", "all"), "--lora_bias all (the checkpoint's: none)"),
        (("--use_rslora",), "--use_rslora True (the checkpoint's: False)"),
        (("--use_lora", "False"), "--use_lora False (the checkpoint's: True)"),
        (("--new_special_tokens", "<a>"), "--new_special_tokens"),
        (("--bf16", "True"), "precision bfloat16, by --bf16 or --fp16 (the checkpoint's: float32)"),
        (("--optim", "sgd"), "--optim sgd (the checkpoint's: adamw_torch_fused)"),
        (("--loss_on", "answers"), "--loss_on answers (the checkpoint's: reference)"),
        (("--init_lora_weights", "gaussian"), "--init_lora_weights gaussian (the checkpoint's: default)"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_would_be_another_run_is_refused(stopped, make_checkpoint, flags, said, monkeypatch):
    """Check the error, which names the flag and both values before a weight is loaded and without writing anything."""
    before = content(stopped)
    monkeypatch.setattr("qwen_vl.checkpoint.loading.load_model", None)
    with pytest.raises(ValueError, match="made with other flags than this run's: ") as raised:
        runs.train(make_checkpoint(), stopped, *LORA, *AUTO, *flags, **STEPS)
    assert said in str(raised.value) and "checkpoint-2" in str(raised.value) and "\n" not in str(raised.value)
    assert content(stopped) == before


@pytest.mark.parametrize(
    ("chat_format", "flags"),
    [
        ("raw", ()),
        ("chatml", ("--new_special_tokens", "<a>", "--lora_target_modules", "attention", "vision")),
        ("chatml", ("--init_lora_weights", "pissa", "--modules_to_save", "ln_f", "lm_head", "--lora_bias", "all")),
        ("chatml", ("--use_dora", "--use_rslora", "--lora_target_modules", "all-linear", "--loraplus_lr_ratio", "4")),
        ("chatml", ("--q_lora",)),
    ],
    ids=["base", "tokens", "pissa", "dora", "nf4"],
)
def test_the_same_flags_are_not_refused(make_checkpoint, tmp_path, caplog, chat_format, flags):
    out = runs.train(make_checkpoint(chat_format), tmp_path / "out", *LORA, *flags, **STEPS | {"max_steps": 2})
    stopped_at(out, 1)
    runs.train(make_checkpoint(chat_format), out, *LORA, *flags, *AUTO, **STEPS | {"max_steps": 2})
    assert len(runs.losses(out)) == 2 and "resumed with other settings" not in caplog.text
    on = (*LORA[:1], "--lora_weight_path", str(out))
    if "--q_lora" in flags:
        return
    more = runs.train(make_checkpoint(chat_format), tmp_path / "more", *on, **STEPS | {"max_steps": 2})
    runs.train(make_checkpoint(chat_format), stopped_at(more, 1), *on, *AUTO, **STEPS | {"max_steps": 2})
    assert len(runs.losses(more)) == 2 and "resumed with other settings" not in caplog.text


@pytest.mark.parametrize("lora", [LORA, ()], ids=["lora", "full"])
def test_another_base_is_refused_and_one_that_moved_is_not(make_checkpoint, tmp_path, lora):
    first = runs.train(make_checkpoint(), tmp_path / "first", *lora, max_steps=1, save_strategy="steps")
    stopped_at(first, 1)
    other = runs.train(make_checkpoint(), tmp_path / "other", max_steps=1)
    with pytest.raises(ValueError, match=f"--model_name_or_path {other}, which holds other weights than"):
        runs.train(other, first, *lora, *AUTO, max_steps=2)
    moved = shutil.copytree(make_checkpoint(), tmp_path / "moved")
    assert len(runs.losses(runs.train(moved, first, *lora, *AUTO, max_steps=2))) == 2


def test_a_checkpoint_that_records_no_settings_resumes_with_the_same_flags(stopped, lora_run, make_checkpoint):
    """Check a checkpoint of an older version: its files are compared, and its learning rate once it is loaded."""
    for path in stopped.glob("checkpoint-*"):
        state = json.loads((path / "run_state.json").read_text())
        kept = {key: value for key, value in state.items() if key not in ("settings", "base", "resumed")}
        (path / "run_state.json").write_text(json.dumps(kept))
        (path / "manifest.json").unlink()
    with pytest.raises(
        ValueError, match=r"made with --learning_rate 0\.001 \(here: 0\.01\), --weight_decay 0\.0 \(here"
    ):
        runs.train(make_checkpoint(), stopped, *LORA, *AUTO, **STEPS, learning_rate=0.01, weight_decay=0.1)
    with pytest.raises(ValueError, match="--lora_alpha 8"):
        runs.train(make_checkpoint(), stopped, *LORA, *AUTO, **STEPS, lora_alpha=8)
    runs.train(make_checkpoint(), stopped, *LORA, *AUTO, **STEPS)
    assert runs.losses(stopped) == runs.losses(lora_run)


def called_again(out, make_checkpoint, *flags, **settings):
    """Return whether calling a finished run again leaves every byte unchanged."""
    before = content(out)
    runs.train(make_checkpoint(), out, *AUTO, *flags, **settings)
    return content(out) == before


def test_a_finished_run_that_is_called_again_changes_no_byte(lora_run, make_checkpoint, tmp_path, capsys):
    out = shutil.copytree(lora_run, tmp_path / "out")
    assert called_again(out, make_checkpoint, *LORA, **STEPS)
    said = capsys.readouterr().err
    assert f"already finished (step 4 of 4); nothing trained, and {out} is as it was" in said
    assert "mean loss" not in said and "saved" not in said
    assert called_again(out, make_checkpoint, *LORA, **STEPS | {"learning_rate": 0.1, "save_steps": 2})
    assert "Without effect: --data_path" in (said := capsys.readouterr().err) and "--save_steps 2 (was 1)" in said
    assert called_again(out, make_checkpoint, *LORA, **STEPS | {"max_steps": 3})
    assert called_again(out, make_checkpoint, *LORA, **STEPS | {"per_device_train_batch_size": 4})
    assert called_again(out, make_checkpoint, *LORA, **STEPS | {"max_steps": -1, "num_train_epochs": 1})
    with pytest.raises(ValueError, match="--lora_alpha 1 "):
        called_again(out, make_checkpoint, *LORA, **STEPS, lora_alpha=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"early_stopping_patience": 1, "learning_rate": 0, "max_steps": 9},
        {"load_best_model_at_end": True, "save_total_limit": 1, "greater_is_better": True, "learning_rate": 0.02},
        {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": True, "learning_rate": 0.02},
    ],
    ids=["stopped early", "only the best is kept", "only the best is saved"],
)
def test_a_run_is_finished_also_where_its_last_step_left_no_checkpoint(make_checkpoint, tmp_path, settings, capsys):
    data = runs.write_data(tmp_path)
    settings = STEPS | {"eval_strategy": "steps", "eval_steps": 1, "eval_data_path": data} | settings
    out = runs.train(make_checkpoint(), tmp_path / "out", *LORA, **settings)
    assert max(path.name for path in out.glob("checkpoint-*")) < "checkpoint-4"
    assert called_again(out, make_checkpoint, *LORA, **settings)
    assert "already finished" in capsys.readouterr().err


def test_a_run_that_was_killed_before_it_wrote_its_result_writes_it(lora_run, make_checkpoint, tmp_path, capsys):
    """Check it also with the result of an earlier run in the folder; no loss is logged without a step."""
    out = shutil.copytree(lora_run, tmp_path / "out")
    (out / "adapter_model.safetensors").unlink()
    runs.train(make_checkpoint(), out, *LORA, *AUTO, **STEPS)
    assert runs.equal(runs.weights(out), runs.weights(lora_run))
    last = read_entries(out / "metrics.jsonl")[-1]
    assert "train_loss" not in last and "mean loss" not in capsys.readouterr().err
    stale = json.loads((out / "checkpoint-4" / "manifest.json").read_text()) | {"written": 2e10}
    (out / "checkpoint-4" / "manifest.json").write_text(json.dumps(stale))
    assert not called_again(out, make_checkpoint, *LORA, **STEPS)


def test_more_steps_on_a_finished_run_take_the_schedule_of_all_of_them(make_checkpoint, tmp_path, caplog):
    """Check that the learning rate is that of a run with all steps, and not the 0 at the end of the shorter run."""
    epochs = {"max_steps": -1, "save_strategy": "epoch", "lr_scheduler_type": "cosine", "warmup_ratio": 0.25}
    long = runs.train(make_checkpoint(), tmp_path / "long", *LORA, **epochs | {"num_train_epochs": 2})
    out = runs.train(make_checkpoint(), tmp_path / "out", *LORA, **epochs | {"num_train_epochs": 1})
    runs.train(make_checkpoint(), out, *LORA, *AUTO, **epochs | {"num_train_epochs": 2})
    rates, wanted = (runs.losses(folder, "learning_rate") for folder in (out, long))
    assert len(rates) == 8 and rates[4:] == wanted[4:] and rates[4] > 5e-4
    said = "the cosine schedule now has 8 steps instead of 4: step 5 trains at"
    assert any(said in text for text in caplog.messages)
    assert any("--num_train_epochs 2 (was 1)" in text for text in caplog.messages)


def test_the_mean_loss_of_a_resumed_run_is_that_of_its_own_steps(make_checkpoint, tmp_path):
    """Check it with a checkpoint after step 3, of which steps 2 and 3 were not logged yet."""
    settings = STEPS | {"max_steps": 6, "logging_steps": 2}
    whole = runs.train(make_checkpoint(), tmp_path / "whole", *LORA, **settings)
    out = runs.train(
        make_checkpoint(), tmp_path / "out", *LORA, **settings, resume_from_checkpoint=whole / "checkpoint-3"
    )
    logged = [entry["loss"] for entry in read_entries(whole / "metrics.jsonl") if "loss" in entry]
    (mean,) = runs.losses(out, "train_loss")
    assert mean == pytest.approx(sum(logged[1:]) / 2, rel=1e-5)


def test_every_flag_is_classified_once():
    groups = (arguments.ModelArguments, arguments.DataArguments, arguments.LoraArguments, arguments.TrainingArguments)
    known = {flag.name for group in groups for flag in fields(group)}
    classes = [resume_settings.KEPT, resume_settings.REFUSED, resume_settings.UNRECORDED]
    listed = [flag for names in classes for flag in names]
    assert len(listed) == len(set(listed)) and set(listed) <= known
    assert set(resume_settings.ADAPTER_FLAGS.values()) <= set(resume_settings.UNRECORDED)
    page = (Path(runs.ROOT) / "docs" / "resume.md").read_text()
    assert all(re.search(rf"--{flag}\b", page) for flag in ("learning_rate", "weight_decay", "lora_alpha", "optim"))
