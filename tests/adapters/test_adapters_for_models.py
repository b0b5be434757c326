"""An adapter in place of a model, a model in place of an adapter, and checkpoints without an optimizer."""

import json
import re

import pytest
from helpers import runs

from qwen_vl.cli import main

EXAMPLES = runs.ROOT / "data" / "examples" / "conversations.json"
ALONE = ("--save_only_model", "True", "--save_strategy", "steps", "--save_steps", "2")


@pytest.fixture(scope="module")
def lora(make_checkpoint, tmp_path_factory):
    """Return the output folder of a LoRA training whose checkpoints hold the adapter alone."""
    return runs.train(make_checkpoint(), tmp_path_factory.mktemp("alone") / "lora", "--use_lora", *ALONE)


def command(*words):
    main.main([str(word) for word in words])


@pytest.mark.parametrize("place", ["", "checkpoint-2"], ids=["result", "checkpoint"])
def test_an_adapter_is_no_model(lora, make_checkpoint, tmp_path, place):
    adapter, base = lora / place, make_checkpoint()
    calls = [
        lambda: runs.train(adapter, tmp_path / "out"),
        lambda: command("quantize", adapter, tmp_path / "out", "--calibration", EXAMPLES),
        lambda: command("quantize", adapter, tmp_path / "out", "--method", "nf4"),
        lambda: command("merge", adapter, tmp_path / "out", "--base", adapter),
        lambda: command("chat", adapter, "--query", "hi", "--base", adapter),
        lambda: command("data", "cache", EXAMPLES, "--model", adapter, "--vision_cache", tmp_path / "cache"),
    ]
    wanted = rf"{adapter}: (is )?an adapter[:;] merge it first \(qwen-vl merge {adapter} "
    for call in calls:
        with pytest.raises(ValueError, match=wanted):
            call()
    with pytest.raises(ValueError, match=f"--lora_weight_path with --use_lora, .*--model_name_or_path {base}"):
        runs.train(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_is_no_adapter(lora, make_checkpoint, tmp_path):
    for call in (
        lambda: command("merge", make_checkpoint(), tmp_path / "out"),
        lambda: runs.train(make_checkpoint(), tmp_path / "out", "--use_lora", lora_weight_path=make_checkpoint()),
    ):
        with pytest.raises(FileNotFoundError, match="it holds a model, not an adapter"):
            call()
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoint-7").mkdir(parents=True)
    (unfinished / "checkpoint-7" / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"the newest adapter is {unfinished / 'checkpoint-7'}"):
        command("merge", unfinished, tmp_path / "out")


def test_a_checkpoint_without_an_optimizer_says_what_it_is_good_for(lora, make_checkpoint, tmp_path, caplog, capsys):
    newest = lora / "checkpoint-4"
    with pytest.raises(ValueError, match=f"holds the adapter alone, .*further as --lora_weight_path {newest}"):
        runs.train(make_checkpoint(), lora, "--use_lora", resume_from_checkpoint=newest)
    runs.train(make_checkpoint(), lora, "--use_lora", *ALONE, "--resume", "auto")
    assert re.search(f"{re.escape(str(newest))}: [^:]+: holds the adapter alone", caplog.text)
    assert "already finished (step 4 of 4)" in capsys.readouterr().err
    on = runs.train(make_checkpoint(), tmp_path / "on", "--use_lora", lora_weight_path=newest, max_steps=1)
    assert runs.weights(on).keys() == runs.weights(newest).keys()
    full = runs.train(make_checkpoint(), tmp_path / "full", *ALONE, max_steps=2)
    caplog.clear()
    runs.train(make_checkpoint(), full, *ALONE, "--resume", "auto", max_steps=2, learning_rate=2e-3)
    assert "holds the model alone, without the optimizer's state, as of a run with --save_only_model" in caplog.text
    assert "--model_name_or_path" in caplog.text and "training starts from the beginning" in caplog.text


def test_a_checkpoint_without_an_optimizer_is_exported_and_merged(lora, make_checkpoint, tmp_path, capsys):
    command("checkpoint", "export", lora / "checkpoint-4", tmp_path / "alone")
    assert runs.equal(runs.weights(tmp_path / "alone"), runs.weights(lora))
    assert json.loads((tmp_path / "alone" / "base.json").read_text())["name"] == str(make_checkpoint())
    command("merge", lora / "checkpoint-4", tmp_path / "merged")
    command("verify", lora, tmp_path / "merged")
    assert "likeliest token is the same at 100.0%" in capsys.readouterr().out
