"""Loading of checkpoints: every layout that was published, no foreign code, no incomplete model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import runs
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from qwen_vl.checkpoint import loading
from qwen_vl.model import QWenLMHeadModel, QWenTokenizer


@pytest.fixture
def checkpoint(make_checkpoint, tmp_path):
    """Return a copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "checkpoint"))


def edit(path, **changes):
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def reshard(folder, *, as_bin=False):
    """Split the weights of a checkpoint into two files, as in older and larger checkpoints."""
    tensors, suffix = runs.weights(folder), "bin" if as_bin else "safetensors"
    (folder / "model.safetensors").unlink()
    stem = "pytorch_model" if as_bin else "model"
    names, weight_map = sorted(tensors), {}
    for number in (1, 2):
        part = {name: tensors[name] for name in names[number - 1 :: 2]}
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        torch.save(part, folder / file) if as_bin else save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


@pytest.mark.parametrize("as_bin", [False, True], ids=["safetensors", "bin"])
def test_every_layout_of_weight_files_loads_and_has_one_fingerprint(checkpoint, as_bin):
    fingerprint = loading.fingerprint(checkpoint)
    tensors = reshard(checkpoint, as_bin=as_bin)
    model = loading.load_model(checkpoint)
    assert runs.equal(tensors, dict(model.state_dict()))
    assert loading.fingerprint(checkpoint) == fingerprint


def test_a_single_old_bin_file_loads_and_trains(checkpoint, tmp_path):
    torch.save(runs.weights(checkpoint), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    trained = runs.train(checkpoint, tmp_path / "out", max_steps=1)
    assert sorted(path.name for path in trained.glob("*model*.*")) == ["model.safetensors", "modeling_qwen.py"]


@pytest.mark.parametrize("name", ["lm_head.weight", "transformer.visual.proj", "transformer.h.1.ln_2.weight"])
def test_other_weights_have_another_fingerprint(checkpoint, name):
    fingerprint, tensors = loading.fingerprint(checkpoint), runs.weights(checkpoint)
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert loading.fingerprint(checkpoint) != fingerprint


def test_dtype_is_that_of_the_checkpoint_or_the_one_asked_for(checkpoint):
    tensors = {name: tensor.bfloat16() for name, tensor in runs.weights(checkpoint).items()}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    edit(checkpoint / "config.json", dtype=None, torch_dtype="bfloat16")  # as in published configs
    assert loading.load_model(checkpoint, dtype="auto").lm_head.weight.dtype == torch.bfloat16
    assert loading.load_model(checkpoint, dtype=torch.float32).lm_head.weight.dtype == torch.float32


def test_foreign_code_in_a_published_folder_never_runs(checkpoint):
    """Check it because the auto_map of published checkpoints names code for another transformers."""
    for name in ("configuration_qwen.py", "modeling_qwen.py", "tokenization_qwen.py", "processing_qwen.py"):
        (checkpoint / name).write_text("raise RuntimeError('foreign code ran')\n")
    loaded = [loading.load_model(checkpoint), loading.load_tokenizer(checkpoint)]
    loaded += [
        auto.from_pretrained(checkpoint, **trust)
        for auto in (AutoModelForCausalLM, AutoTokenizer, AutoProcessor)
        for trust in ({}, {"trust_remote_code": True})
    ]
    assert {type(each).__name__ for each in loaded} == {"QWenLMHeadModel", "QWenTokenizer", "QWenProcessor"}
    assert {type(each).__module__.split(".")[0] for each in loaded} == {"qwen_vl"}
    assert isinstance(loaded[0], QWenLMHeadModel) and isinstance(loaded[1], QWenTokenizer)


def test_a_pickle_with_code_is_refused_and_not_run(checkpoint, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (checkpoint / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a file is damaged or holds more than tensors"):
        loading.load_model(checkpoint)
    assert not (tmp_path / "ran").exists()


def break_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def lose_a_shard(folder):
    reshard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


DAMAGE = {
    "other architecture": (lambda f: edit(f / "config.json", model_type="llama"), "type llama"),
    "language model": (lambda f: edit(f / "config.json", visual=None), "without a vision tower"),
    "half a visual": (lambda f: edit(f / "config.json", visual={"heads": 2}), "config.visual lacks image_size"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json: holds a list"),
    "small vocabulary": (lambda f: edit(f / "config.json", vocab_size=900), "1217 tokens, the model has 900 rows"),
    "no vocabulary": (lambda f: (f / "qwen.tiktoken").unlink(), "has no qwen.tiktoken"),
    "not a vocabulary": (lambda f: (f / "qwen.tiktoken").write_text("<html>"), "line 1"),
    "shifted vocabulary": (
        lambda f: (f / "qwen.tiktoken").write_bytes(
            b"".join((f / "qwen.tiktoken").read_bytes().splitlines(keepends=True)[:900])
        ),
        "<img> is token 1114, config.visual.image_start_id is 1214",
    ),
    "other span": (lambda f: edit(f / "tokenizer_config.json", image_span_tokens=9), "they must be equal"),
    "tokenizer config": (lambda f: (f / "tokenizer_config.json").write_text("{"), "tokenizer_config.json: not JSON"),
    "generation config": (lambda f: (f / "generation_config.json").write_text("{"), "generation_config.json: not JSON"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors and no pytorch_model.bin"),
    "lost shard": (lose_a_shard, "model-00002-of-00002.safetensors is listed"),
    "cut file": (break_weights, "the weights cannot be read"),
    "missing weights": (lambda f: edit(f / "config.json", num_hidden_layers=3), "8 missing"),
    "left-over weights": (lambda f: edit(f / "config.json", num_hidden_layers=1), "8 left over"),
    "other shapes": (lambda f: edit(f / "config.json", intermediate_size=256), "6 of another shape"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_one_error_that_names_it(checkpoint, name):
    damage, said = DAMAGE[name]
    damage(checkpoint)
    with pytest.raises((ValueError, OSError), match=said) as raised:
        loading.load_tokenizer(checkpoint)
        loading.load_model(checkpoint)
    assert str(checkpoint) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["missing weights", "left-over weights", "other shapes", "cut file"])
def test_deepspeed_zero3_which_reports_nothing_is_given_no_such_weights(checkpoint, monkeypatch, name):
    damage, said = DAMAGE[name]
    damage(checkpoint)
    monkeypatch.setattr(loading, "is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(QWenLMHeadModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match=said):
        loading.load_model(checkpoint)
