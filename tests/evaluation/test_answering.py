"""A folder of any kind answers, and its identity is its content."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from qwen_vl.checkpoint import loading
from qwen_vl.evaluation.answering import LocalModel, identify
from qwen_vl.evaluation.records import Decoding, ImageSource, Prompt, Ranking


@pytest.fixture
def adapter_dir(make_checkpoint, tmp_path):
    """An adapter that changes what the model says."""
    base, folder = make_checkpoint("raw"), tmp_path / "adapter"
    adapted = get_peft_model(loading.load_model(base), LoraConfig(r=2, target_modules=["c_attn"]))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(folder)
    (folder / "base.json").write_text(json.dumps({"name": str(base), "fingerprint": loading.fingerprint(base)}))
    return folder


@pytest.fixture
def prompts(tmp_path):
    Image.new("RGB", (30, 40), "red").save(tmp_path / "red.png")
    image = ImageSource.from_file(tmp_path / "red.png")
    return [Prompt((image, f"what is {word}?")) for word in ("this", "that", "here")]


def answers(model, prompts, decoding, **options):
    found = {}
    model.answer(prompts, decoding, batch_size=2, on_batch=lambda said: found.update(dict(said)), **options)
    return [found[number] for number in range(len(prompts))]


def test_folders_of_every_kind_answer(make_checkpoint, make_int4_checkpoint, adapter_dir, prompts):
    kinds = {"model": make_checkpoint("raw"), "gptq": make_int4_checkpoint("raw"), "adapter": adapter_dir}
    texts, identities = {}, {}
    for kind, folder in kinds.items():
        model = LocalModel.load(folder, device="cpu")
        identity = model.identity
        assert identity == identify(folder) and (identity.kind, identity.label) == (kind, folder.name)
        assert identity.is_chat is (kind == "adapter") and identity.dtype == str(model.model.dtype).split(".")[1]
        texts[kind], identities[kind] = answers(model, prompts, Decoding(6)), identity
        assert len(texts[kind]) == 3 and all(1 <= one.num_tokens <= 6 and one.error is None for one in texts[kind])
        ranked = answers(model, prompts, Ranking(4))
        assert [len(one.losses) for one in ranked] == [4, 4, 4]
        assert [len(one.losses) for one in answers(model, prompts, Ranking(), option_counts=[2, 3, 5])] == [2, 3, 5]
    assert texts["adapter"] != texts["model"]
    assert len({one.fingerprint for one in identities.values()}) == 3
    assert len({one.tokenizer for one in identities.values()}) == 1
    assert identify(adapter_dir, dtype="bfloat16").dtype == "bfloat16"


def test_an_identity_is_content_and_not_place(make_checkpoint, adapter_dir, tmp_path):
    folder = shutil.copytree(make_checkpoint(), tmp_path / "copy")
    first = identify(folder)
    assert first.fingerprint == identify(make_checkpoint()).fingerprint and first.is_chat
    model = loading.load_model(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert identify(folder).fingerprint == first.fingerprint

    model.transformer.wte.weight.data[500, 20] += 1e-3  # one value, neither at the start nor at the end
    model.save_pretrained(folder, max_shard_size="300KB")
    seen = {first.fingerprint, identify(folder).fingerprint}
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"use_logn_attn": False}))
    seen.add(identify(folder).fingerprint)

    before = identify(adapter_dir)
    seen.add(before.fingerprint)
    settings = json.loads((adapter_dir / "adapter_config.json").read_text())
    (adapter_dir / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 3}))
    seen.add(identify(adapter_dir).fingerprint)
    tensors = load_file(adapter_dir / "adapter_model.safetensors")
    tensors[sorted(tensors)[0]][1, 7] += 1
    save_file(tensors, adapter_dir / "adapter_model.safetensors", metadata={"format": "pt"})
    seen.add(identify(adapter_dir).fingerprint)
    assert len(seen) == 6

    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"extra_tokens": ["<mine>"]}))
    assert identify(folder).tokenizer != first.tokenizer
