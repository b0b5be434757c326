"""Features of a frozen tower from disk: the same results, no second pass through the tower, nothing wrong ever used."""

import json
import shutil

import pytest
import runs
import torch
from PIL import Image
from safetensors import safe_open

from qwen_vl.data.commands import main as data_command
from qwen_vl.model.visual import VisionTower
from qwen_vl.training import callbacks, loading, tuning, vision_cache

LORA = ("--use_lora", "--lora_dropout", "0")
KINDS = {"image_features": LORA, "vit_features": ()}
PICTURES = sum(picture is not None for picture, _, _ in runs.TEXTS)


@pytest.fixture
def passes(monkeypatch):
    """A list that gets the number of pictures of every pass through the ViT."""
    seen, encode = [], VisionTower.encode
    monkeypatch.setattr(VisionTower, "encode", lambda self, x: seen.append(len(x)) or encode(self, x))
    return seen


def close(first, second):
    """Whether two runs went alike: batches of other sizes round differently."""
    assert runs.losses(first) == pytest.approx(runs.losses(second), rel=1e-6)
    assert runs.largest_difference(runs.weights(first), runs.weights(second)) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_from_the_cache_equals_one_without(make_checkpoint, tmp_path, passes, kind):
    """Filled in the first epoch, read in the second; filled ahead, and read by workers; evaluation reads it as well."""
    data = runs.write_data(tmp_path)
    settings = {"data_path": data, "max_steps": 8, "learning_rate": 1e-3, "gradient_accumulation_steps": 1}
    plain = runs.train(make_checkpoint(), tmp_path / "plain", *KINDS[kind], **settings)
    assert sum(passes) == 2 * PICTURES
    passes.clear()
    cache = tmp_path / "cache"
    cached = runs.train(make_checkpoint(), tmp_path / "cached", *KINDS[kind], vision_cache=cache, **settings)
    assert sum(passes) == PICTURES
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
    entries = callbacks.read_metrics(again / "metrics.jsonl")
    assert any("eval_loss" in entry for entry in entries)


@pytest.fixture
def cache_of(make_checkpoint, tmp_path):
    """A function that opens a cache in a folder for the tower of a checkpoint."""

    def build(model=None, kind="image_features", dtype=torch.float32):
        return vision_cache.of_checkpoint(tmp_path / "cache", model or make_checkpoint(), kind=kind, dtype=dtype)

    return build


def test_what_belongs_to_something_else_is_never_used(cache_of, make_checkpoint, tmp_path, caplog):
    """Another picture under the same name, another tower, dtype or kind, a shard in a wrong folder."""
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    cache, features = cache_of(), torch.rand(16, 64)
    key = cache.key("a.png", [tmp_path])
    cache.add([key], features[None])
    cache.flush()
    assert torch.equal(cache_of().get(cache_of().key(str(path))), features) and cache_of().num_pictures() == 1
    Image.new("RGB", (8, 8), "blue").save(path)
    assert cache.key("a.png", [tmp_path]) != key and cache.get(cache.key(str(path))) is None
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
    assert "is damaged; the picture is encoded anew" in caplog.text
    assert 1 <= sum(passes) < PICTURES
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


def test_a_tower_that_trains_is_refused(make_checkpoint, tmp_path, capsys):
    for flags in (["--fix_vit", "False"],):
        with pytest.raises(SystemExit):
            runs.train(make_checkpoint(), tmp_path / "out", *flags, vision_cache=tmp_path / "cache")
        assert "--vision_cache needs a frozen ViT" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the ViT trains"):
        runs.train(
            *(make_checkpoint(), tmp_path / "out", "--use_lora", "--lora_target_modules", "c_attn", "in_proj"),
            vision_cache=tmp_path / "cache",
        )
    lora = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": ["c_attn"], "bias": "none"}
    whole = tuning.add_adapters(loading.load_model(make_checkpoint()), **lora, modules_to_save=["visual"])
    with pytest.raises(ValueError, match="the ViT trains"):
        vision_cache.opened(tmp_path, whole, name=make_checkpoint(), dtype=torch.float32)
    model = loading.load_model(make_checkpoint()).requires_grad_(False)
    with pytest.raises(ValueError, match="ZeRO-3 and FSDP gather"):
        vision_cache.opened(tmp_path, model, name=make_checkpoint(), dtype=torch.float32, is_sharded=True)
