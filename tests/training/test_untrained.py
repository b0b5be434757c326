"""Parameters that should have trained but did not are an error; those without anything to learn from are not."""

import json
import re

import pytest
import torch
from helpers import runs
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from qwen_vl.adapters import build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading
from qwen_vl.families import v1 as family
from qwen_vl.model.modeling_qwen import QWenModel
from qwen_vl.training import trainer
from qwen_vl.training.vision_cache import cache as vision_cache_cache

TEXTS = [(None, f"{i}?", f"{i} and more") for i in range(6)]
IMAGES = [("images/train_00.jpg", "What?", "A red square."), ("images/train_01.jpg", "And?", "A circle.")]
RESAMPLER = ("--use_lora", "--lora_target_modules", "resampler")
NO_GRADIENT = "to train and got no gradient; leave them out of what trains"
NO_IMAGE = "all that is to train is of the vision tower, and the data hold no image"


def train(model, tmp_path, *flags, samples=runs.TEXTS, name="out", **settings):
    (tmp_path / f"{name}-data").mkdir()
    return runs.train(
        model, tmp_path / name, *flags, data_path=runs.write_data(tmp_path / f"{name}-data", samples), **settings
    )


@pytest.fixture
def cut_off():
    """Return a function that detaches the outputs of all modules of a kind."""
    handles = []

    def cut(kind):
        handles.append(
            register_module_forward_hook(lambda module, _, out: out.detach() if isinstance(module, kind) else out)
        )

    yield cut
    for handle in handles:
        handle.remove()


def test_what_gets_no_gradient_ends_the_run_in_its_first_step(make_checkpoint, tmp_path, cut_off):
    cut_off(nn.Embedding)
    with pytest.raises(ValueError, match=rf"step 1: 1 parameter \(transformer.wte.weight\) was {NO_GRADIENT}"):
        train(make_checkpoint(), tmp_path)
    train(make_checkpoint(), tmp_path, "--use_lora", name="lora")  # which does not train it


def test_the_vision_tower_must_get_gradients_in_the_first_step_with_a_image(make_checkpoint, tmp_path, cut_off):
    cut_off(nn.Conv2d)
    flags = {"samples": TEXTS[:4] + IMAGES, "train_sampling_strategy": "sequential", "fix_vit": False}
    with pytest.raises(ValueError, match=rf"step 3: .*transformer.visual.conv1.weight\) was {NO_GRADIENT}"):
        train(make_checkpoint(), tmp_path, **flags)


def test_a_tower_that_is_trained_and_never_run_is_found(make_checkpoint, tmp_path, monkeypatch):
    """Check a run that takes cached features of the frozen tower while a copy of the tower should train."""
    cache, flags = {"vision_cache": tmp_path / "cache", "num_train_epochs": 2, "max_steps": -1}, ("--use_lora",)
    train(make_checkpoint(), tmp_path, *flags, **cache)
    monkeypatch.setattr(vision_cache_cache, "check_frozen", lambda *args, **kwargs: None)
    monkeypatch.setattr(vision_cache_cache, "VIT_OUTPUT", vision_cache_cache.TOWER_OUTPUT)
    with pytest.raises(ValueError, match=rf"step 1: 41 parameters \(transformer.visual.* were {NO_GRADIENT}"):
        train(make_checkpoint(), tmp_path, *flags, "--modules_to_save", "visual", name="whole", **cache)


def test_recomputation_that_passes_no_gradients_is_found(make_checkpoint, tmp_path):
    flags = ("--use_lora", "--lora_target_modules", "vision", "c_attn", "--gradient_checkpointing")
    kwargs = ("--gradient_checkpointing_kwargs", '{"use_reentrant": true}')
    with pytest.raises(ValueError, match=rf"step 1: 16 parameters .* were {NO_GRADIENT}.*use_reentrant"):
        train(make_checkpoint(), tmp_path, *flags, *kwargs)


def test_parts_without_images_are_a_warning_where_others_train(make_checkpoint, tmp_path, caplog):
    out = train(make_checkpoint(), tmp_path, samples=TEXTS)
    (said,) = [entry.getMessage() for entry in caplog.records if "to train" in entry.getMessage()]
    assert re.search(r"^10 parameters \(.*attn_pool.* were to train and did not change, as no batch had an image", said)
    before, after = runs.weights(make_checkpoint()), runs.weights(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".visual." not in name}
    caplog.clear()
    train(make_checkpoint(), tmp_path, "--use_lora", samples=TEXTS, name="lora")
    train(make_checkpoint(), tmp_path, samples=TEXTS + IMAGES, name="mixed", num_train_epochs=1, max_steps=-1)
    assert not [entry for entry in caplog.records if "to train" in entry.getMessage()]


def test_the_vision_tower_alone_trains_where_images_are(make_checkpoint, tmp_path):
    """Check that steps without images change nothing (momentum, weight decay); data without images are an error."""
    flags = {"train_sampling_strategy": "sequential", "weight_decay": 0.5, "lr_scheduler_type": "constant"}
    one = train(make_checkpoint(), tmp_path, *RESAMPLER, samples=IMAGES, max_steps=1, name="one", **flags)
    more = train(make_checkpoint(), tmp_path, *RESAMPLER, samples=IMAGES + TEXTS, name="more", **flags)
    assert len(runs.losses(more)) == 4 and runs.equal(runs.weights(one), runs.weights(more))
    for name, recomputed in (("plain", ()), ("recomputed", ("--gradient_checkpointing",))):
        late = train(make_checkpoint(), tmp_path, *RESAMPLER, *recomputed, samples=TEXTS + IMAGES, name=name, **flags)
        assert runs.largest_difference(runs.weights(one), runs.weights(late)) < 1e-6
    with pytest.raises(ValueError, match="only the resampler would, and no sample has an image"):
        train(make_checkpoint(), tmp_path, *RESAMPLER, samples=TEXTS, name="none")
    with pytest.raises(ValueError, match=f"nothing has trained: {NO_IMAGE}"):
        lines = [json.dumps(record) for record in json.loads((tmp_path / "none-data" / "data.json").read_text())]
        (tmp_path / "data.jsonl").write_text("\n".join(lines))
        runs.train(make_checkpoint(), tmp_path / "s", *RESAMPLER, "--streaming", data_path=tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    ("flags", "settings", "said"),
    [
        ((), {"warmup_steps": 4, "max_steps": 1}, "nothing has trained: .* in 1 steps; the learning rate was 0 in all"),
        ((), {"learning_rate": 1e-60}, "nothing has trained: 16 parameters .* in 4 steps; raise --learning_rate"),
        ((), {"learning_rate": 1e-12}, "8 parameters .*lora_A.* did not change in 4 steps; their learning rate is too"),
        (
            ("--modules_to_save", "ln_f"),
            {"learning_rate": 1e-9, "lora_lr": 1e-3},
            r"1 parameter \(transformer.ln_f.weight\) was to train and did not change",
        ),
    ],
    ids=["warmup", "no rate", "tiny rate", "tiny rate of a part"],
)
def test_what_did_not_change_is_an_error_once_it_is_saved(make_checkpoint, tmp_path, flags, settings, said):
    with pytest.raises(ValueError, match=said):
        train(make_checkpoint(), tmp_path, "--use_lora", *flags, **settings)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_what_should_not_change_is_no_error(make_checkpoint, tmp_path, caplog):
    """Check rates of 0, gradients of 0, an optimizer without a state, the best weights, and a resumed run."""
    base, lora = make_checkpoint(), "--use_lora"
    train(base, tmp_path, lora, name="rate", learning_rate=0)
    train(base, tmp_path, name="vision", fix_vit=False, vision_lr=0, max_steps=1)
    train(base, tmp_path, lora, name="first", max_steps=1)  # the A sides
    assert not [entry for entry in caplog.records if "to train" in entry.getMessage()]
    train(base, tmp_path, lora, "--new_special_tokens", "<never>", name="tokens")
    (said,) = [entry.getMessage() for entry in caplog.records if "to train" in entry.getMessage()]
    assert said.startswith("1 parameter (transformer.wte.") and "nothing in the data makes use of them" in said
    train(base, tmp_path, lora, name="sgd", optim="sgd")
    each = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    data = runs.write_data(tmp_path)
    train(base, tmp_path, lora, name="best", load_best_model_at_end=True, eval_data_path=data, warmup_steps=1, **each)
    whole = {"learning_rate": 1e-7, "max_steps": 10, "save_strategy": "steps", "save_steps": 9, "lora_lr": 1e-3}
    flags = (lora, "--modules_to_save", "ln_f")
    done = train(base, tmp_path, *flags, name="whole", **whole)
    resumed = train(base, tmp_path, *flags, name="resumed", resume_from_checkpoint=done / "checkpoint-9", **whole)
    assert runs.equal(runs.weights(resumed), runs.weights(done))


def test_checks_cost_a_run_nothing(make_checkpoint, tmp_path, monkeypatch):
    """Compare losses and weights with a run without the checks."""
    checked = train(make_checkpoint(), tmp_path, name="checked")
    monkeypatch.setattr(trainer.QWenTrainer, "add_callback", without_check(trainer.QWenTrainer.add_callback))
    plain = train(make_checkpoint(), tmp_path, name="plain")
    assert runs.losses(plain) == runs.losses(checked) and runs.equal(runs.weights(plain), runs.weights(checked))


def without_check(add_callback):
    return lambda self, callback: None if isinstance(callback, trainer.UntrainedCheck) else add_callback(self, callback)


def test_the_tower_that_runs_is_the_one_that_is_looked_at(make_checkpoint):
    """Check that a copy which trains is compared, not the frozen original next to it."""
    options = LoraOptions(r=4, alpha=8, dropout=0.0, targets=["c_attn"], modules_to_save=["visual"])
    model = build.add_adapters(loading.load_model(make_checkpoint()), options)
    tower = family.tower(model)
    assert tower.vit_trains() and isinstance(model.get_base_model().transformer, QWenModel)
    assert tower is model.get_base_model().transformer.visual.modules_to_save["default"]
