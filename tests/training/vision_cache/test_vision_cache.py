"""Cached features of a frozen tower: the same results, no second pass through the tower, no wrong features."""

import json
import shutil

import pytest
import torch
from helpers import runs
from PIL import Image
from safetensors import safe_open

from qwen_vl.checkpoint import loading
from qwen_vl.cli.data import main as data_command
from qwen_vl.files import read_entries
from qwen_vl.model.visual import VisionTower
from qwen_vl.training.vision_cache import cache as vision_cache_cache

LORA = ("--use_lora", "--lora_dropout", "0")
KINDS = {"image_features": LORA, "vit_features": ()}
IMAGES = sum(image is not None for image, _, _ in runs.TEXTS)


@pytest.fixture
def passes(monkeypatch):
    """Return a list that gets the number of images of every pass through the ViT."""
    seen, encode = [], VisionTower.encode
    monkeypatch.setattr(VisionTower, "encode", lambda self, x: seen.append(len(x)) or encode(self, x))
    return seen


def close(first, second):
    """Check that two runs agree up to the rounding of different batch sizes."""
    assert runs.losses(first) == pytest.approx(runs.losses(second), rel=1e-6)
    assert runs.largest_difference(runs.weights(first), runs.weights(second)) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_from_the_cache_equals_one_without(make_checkpoint, tmp_path, passes, kind):
    """Check a cache that the first epoch fills, and one filled ahead and read by workers and by evaluation."""
    data = runs.write_data(tmp_path)
    settings = {"data_path": data, "max_steps": 8, "learning_rate": 1e-3, "gradient_accumulation_steps": 1}
    plain = runs.train(make_checkpoint(), tmp_path / "plain", *KINDS[kind], **settings)
    assert sum(passes) == 2 * IMAGES
    passes.clear()
    cache = tmp_path / "cache"
    cached = runs.train(make_checkpoint(), tmp_path / "cached", *KINDS[kind], vision_cache=cache, **settings)
    assert sum(passes) == IMAGES
    close(plain, cached)
    (folder,) = cache.iterdir()
    assert folder.name.startswith(kind) and json.loads((folder / "info.json").read_text())["dtype"] == "float32"
    passes.clear()
    ahead, words = tmp_path / "ahead", [word for word in KINDS[kind] if word == "--use_lora"]
    words = [
        *map(str, (data, "--model", make_checkpoint(), "--vision_cache", ahead, "--image_folder", runs.GOLDEN))
    ] + words
    data_command(["cache", *words, "--workers", "1", "--batch_size", "3"])
    assert passes == [3, 2] and {path.name for path in ahead.iterdir()} == {folder.name}
    data_command(["cache", *words])
    passes.clear()
    evaluated = {"eval_data_path": data, "eval_strategy": "steps", "eval_steps": 8, "dataloader_num_workers": 1}
    again = runs.train(make_checkpoint(), tmp_path / "again", *KINDS[kind], vision_cache=ahead, **settings, **evaluated)
    assert passes == []
    close(plain, again)
    entries = read_entries(again / "metrics.jsonl")
    assert any("eval_loss" in entry for entry in entries)


@pytest.fixture
def cache_of(make_checkpoint, tmp_path):
    """Return a function that opens a cache for the tower of a model folder."""

    def build(model=None, kind="image_features", dtype=torch.float32):
        return vision_cache_cache.of_checkpoint(tmp_path / "cache", model or make_checkpoint(), kind=kind, dtype=dtype)

    return build


def test_what_belongs_to_something_else_is_never_used(cache_of, make_checkpoint, tmp_path, caplog):
    """Check another image with the same name, another tower, dtype or kind, and a shard in a wrong folder."""
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    cache, features = cache_of(), torch.rand(16, 64)
    key = cache.key(str(path))
    cache.add([key], features[None])
    cache.flush()
    assert torch.equal(cache_of().get(cache_of().key(str(path))), features) and cache_of().num_images() == 1
    Image.new("RGB", (8, 8), "blue").save(path)
    assert cache.key(str(path)) != key and cache.get(cache.key(str(path))) is None
    changed = shutil.copytree(make_checkpoint(), tmp_path / "changed")
    model = loading.load_model(changed)
    model.transformer.visual.transformer.resblocks[1].mlp.c_fc.weight.data[7, 7] += 1e-3
    model.save_pretrained(changed)
    others = [cache_of(changed), cache_of(dtype=torch.bfloat16), cache_of(kind="vit_features")]
    assert len({cache.folder, *(other.folder for other in others)}) == 4
    assert all(other.get(key) is None for other in others)
    others[0].folder.mkdir()
    shutil.copy(next(cache.folder.glob("*.safetensors")), others[0].folder)
    assert cache_of(changed).get(key) is None and "features of another tower" in caplog.text
    model.transformer.visual.attn_pool.query.data += 1  # after the ViT
    model.save_pretrained(changed)
    assert cache_of(changed).folder != others[0].folder
    before = cache_of(changed, kind="vit_features").folder
    model.lm_head.weight.data += 1
    model.save_pretrained(changed)
    assert cache_of(changed, kind="vit_features").folder == before


def test_damage_is_found_and_mended(cache_of, make_checkpoint, tmp_path, passes, caplog):
    data, settings = runs.write_data(tmp_path), {"max_steps": 4, "vision_cache": tmp_path / "cache"}
    first = runs.train(make_checkpoint(), tmp_path / "first", *LORA, data_path=data, **settings)
    (shard,) = cache_of().folder.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    passes.clear()
    again = runs.train(make_checkpoint(), tmp_path / "again", *LORA, data_path=data, **settings)
    assert "is damaged; the image is encoded again" in caplog.text
    assert 1 <= sum(passes) < IMAGES
    close(first, again)
    passes.clear()
    shard.write_bytes(content[: len(content) // 2])
    runs.train(make_checkpoint(), tmp_path / "third", *LORA, data_path=data, **settings)
    assert sum(passes) > 0
    passes.clear()
    runs.train(make_checkpoint(), tmp_path / "fourth", *LORA, data_path=data, **settings)
    assert passes == []
    for file in cache_of().folder.glob("*.safetensors"):
        if file != shard:
            with safe_open(file, framework="pt") as handle:
                assert handle.metadata()["made_from"] == cache_of().digest
    assert not list(cache_of().folder.glob(".*"))


TRAINS_THE_VIT = {
    "adapters": ("--lora_target_modules", "vision"),
    "adapters everywhere": ("--lora_target_modules", "all-linear"),
    "adapters by name": ("--lora_target_modules", "c_attn", "in_proj"),
    "adapters on patches": ("--lora_target_modules", "c_attn", "conv1"),
    "DoRA": ("--use_dora", "--lora_target_modules", "resblocks.1.mlp.c_fc"),
    "tower whole": ("--modules_to_save", "visual"),
    "tower whole, under adapters": ("--modules_to_save", "transformer.visual", "--lora_target_modules", "all-linear"),
    "ViT whole": ("--modules_to_save", "visual.transformer"),
    "blocks whole": ("--modules_to_save", "resblocks"),
    "block whole": ("--modules_to_save", "wte", "resblocks.0"),
    "attention whole": ("--modules_to_save", "attn"),
    "patches whole": ("--modules_to_save", "conv1"),
    "norm whole": ("--modules_to_save", "ln_pre"),
    "biases": ("--lora_bias", "all"),
}


@pytest.mark.parametrize("way", TRAINS_THE_VIT)
def test_a_vit_that_trains_is_refused_before_weights_are_loaded(make_checkpoint, tmp_path, monkeypatch, way):
    monkeypatch.setattr(loading, "load_model", None)  # would be a TypeError
    with pytest.raises(ValueError, match=r"--vision_cache .*: the ViT trains"):
        flags = ("--use_lora", *TRAINS_THE_VIT[way])
        runs.train(make_checkpoint(), tmp_path / "out", *flags, vision_cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--modules_to_save", "attn_pool"), "visual.attn_pool."),
        (("--modules_to_save", "ln_post"), "visual.ln_post."),
        (("--lora_target_modules", "c_attn", "resampler"), "visual.attn_pool."),
    ],
    ids=["resampler whole", "norm whole", "adapters"],
)
def test_what_follows_the_vit_trains_from_the_cache(make_checkpoint, tmp_path, passes, flags, part):
    """Check that all its parameters train without a pass through the ViT once the cache is filled, also continued."""
    settings = {"vision_cache": tmp_path / "cache", "learning_rate": 1e-2}
    runs.train(make_checkpoint(), tmp_path / "first", *LORA, *flags, **settings)
    assert {path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()} == {"vit_features"}
    passes.clear()
    out = runs.train(make_checkpoint(), tmp_path / "out", *LORA, *flags, **settings)
    on = runs.train(make_checkpoint(), tmp_path / "on", *LORA, lora_weight_path=out, **settings)
    assert passes == []
    base, trained, continued = (runs.weights(folder) for folder in (make_checkpoint(), out, on))
    names = [name for name in trained if part in name and not name.endswith("pos_embed")]
    origin = {name: base.get(name.removeprefix("base_model.model.")) for name in names}
    assert names and all(origin[name] is None or (trained[name] != origin[name]).any() for name in names)
    assert all((trained[name] != continued[name]).any() for name in names)
    with pytest.raises(ValueError, match="the ViT trains"):
        flags = ("--use_lora", "--lora_target_modules", "vision")
        vit = runs.train(make_checkpoint(), tmp_path / "vit", *flags, max_steps=1)
        runs.train(make_checkpoint(), tmp_path / "not", "--use_lora", lora_weight_path=vit, **settings)


def test_full_training_of_the_vit_and_sharded_weights_are_refused(make_checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        runs.train(make_checkpoint(), tmp_path / "out", "--fix_vit", "False", vision_cache=tmp_path / "cache")
    assert "--vision_cache needs a frozen ViT" in capsys.readouterr().err
    model = loading.load_model(make_checkpoint()).requires_grad_(False)
    with pytest.raises(ValueError, match="ZeRO-3 and FSDP gather"):
        vision_cache_cache.opened(tmp_path, model, name=make_checkpoint(), dtype=torch.float32, is_sharded=True)
