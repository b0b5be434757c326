"""Adapters in an engine: each name answers with its own weights, together with the base, and shares nothing with it."""

import json
import re
import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from qwen_vl.checkpoint import loading
from qwen_vl.serving.conversation import Message, SentImage
from qwen_vl.serving.engine import Engine, EngineRequest, EngineSettings
from qwen_vl.serving.prompts import encode

SETTINGS = EngineSettings(max_running=16, max_batch_tokens=48, page_size=16, kv_tokens=1024, num_images=8)
KINDS = {
    "plain": {"target_modules": ["c_attn", "w1"]},
    "dora.2": {"target_modules": ["c_attn"], "use_dora": True},
    "whole": {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]},
}


@pytest.fixture(scope="module")
def adapters(make_checkpoint, tmp_path_factory):
    """Return {name: (folder, adapted model)}."""
    base, made = make_checkpoint(), {}
    for seed, (name, options) in enumerate(KINDS.items()):
        adapted = get_peft_model(loading.load_model(base), LoraConfig(r=2, **options))
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path_factory.mktemp(f"adapter{seed}")
        adapted.save_pretrained(folder)
        record = {"name": str(base), "fingerprint": loading.fingerprint(base)}
        (folder / "base.json").write_text(json.dumps(record))
        made[name] = folder, adapted.eval()
    return made


def generated(model, one, tokenizer, pixels):
    ends = [tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id]
    ids = torch.tensor([one.prompt.ids])
    output = model.generate(
        input_ids=ids, pixel_values=pixels, do_sample=False, top_p=None, top_k=None, max_new_tokens=8, eos_token_id=ends
    )[0, len(one.prompt.ids) :].tolist()
    return output[:-1] if output[-1] in ends else output


def test_base_and_adapters_answer_together_with_their_own_weights(make_checkpoint, adapters):
    from qwen_vl.model.image_processing_qwen import pixels

    models = {"tiny": loading.load_model(make_checkpoint()).eval()} | {n: m for n, (_, m) in adapters.items()}
    folders = {name: folder for name, (folder, _) in adapters.items()}
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image = SentImage.of(Image.fromarray(noise.numpy()))
    found, threads = {}, []
    with Engine.load(make_checkpoint(), adapters=folders, settings=SETTINGS, name="tiny", device="cpu") as engine:
        assert [(entry.id, entry.parent) for entry in engine.model_names[:2]] == [("tiny", None), ("plain", "tiny")]
        prompt = encode(engine.tokenizer, [Message("user", (image, "What is it?"))])
        requests = [EngineRequest("r", name, prompt, 8) for _ in range(2) for name in models]

        def run(place):
            found[place] = [i for event in engine.stream(requests[place]) for i in event.ids]

        threads = [threading.Thread(target=run, args=(place,)) for place in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        values = pixels(image.image, 64)[None]
        expected = [generated(models[one.model], one, engine.tokenizer, values) for one in requests]
    assert [found[place] for place in range(len(requests))] == expected
    assert len({tuple(ids) for ids in expected}) == len(models)


def test_an_adapter_of_another_base_is_refused(make_checkpoint, adapters, tmp_path):
    folder = adapters["plain"][0]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    record = {"name": "elsewhere", "fingerprint": "0" * 64}
    (tmp_path / "base.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="not the weights that"):
        Engine.load(make_checkpoint(), adapters={"wrong": tmp_path}, settings=SETTINGS, device="cpu")
    with pytest.raises(ValueError, match="the name of the base and of an adapter"):
        Engine.load(make_checkpoint(), adapters={"tiny": folder}, name="tiny", device="cpu")


def test_a_damaged_adapter_is_named_wherever_it_stands(make_checkpoint, adapters, tmp_path):
    folder = adapters["plain"][0]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for wanted in ({"bad": tmp_path}, {"good": folder, "bad": tmp_path}):
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
            Engine.load(make_checkpoint(), adapters=wanted, settings=SETTINGS, device="cpu")
