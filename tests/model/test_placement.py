"""Offloading of any part of a model: the answers stay the same."""

import pytest
import torch

from qwen_vl.evaluation import generation
from qwen_vl.model import QWenLMHeadModel, QWenTokenizer
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import pixels

GREEDY = {"do_sample": False, "max_new_tokens": 4}
PARTS = ("transformer.wte", "transformer.drop", "transformer.h", "transformer.ln_f", "transformer.visual", "lm_head")
BLOCKS = ("transformer.h.0", "transformer.h.1")
TOWER = ("conv1", "positional_embedding", "ln_pre", "transformer", "attn_pool", "ln_post", "proj")


def device_map(*offloaded):
    """Return a device map with `offloaded` on disk and all else on the CPU; a part is split if a piece is offloaded."""
    pieces = {"transformer.h": BLOCKS, "transformer.visual": [f"transformer.visual.{name}" for name in TOWER]}
    names = []
    for part in PARTS:
        split = part in pieces and any(name in offloaded for name in pieces[part])
        names += pieces[part] if split else [part]
    return {name: "disk" if name in offloaded else "cpu" for name in names}


MAPS = {
    **{part: {"device_map": device_map(part)} for part in PARTS if part != "transformer.drop"},
    "a block": {"device_map": device_map(BLOCKS[1])},
    "a layer of the tower": {"device_map": device_map("transformer.visual.conv1")},
    # Single weights that accelerate would leave on the meta device.
    "weights of the tower itself": {
        "device_map": device_map("transformer.visual.positional_embedding", "transformer.visual.proj", "lm_head")
    },
    "everything": {"device_map": {"": "disk"}},
    "auto": {"device_map": "auto", "max_memory": {"cpu": "0.9MB"}},
}


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint):
    return QWenTokenizer.from_pretrained(make_checkpoint())


@pytest.fixture
def asked(in_golden_dir):
    """Return a function from a model to a list of its answers, one for each way to generate them."""

    def ask(model, tokenizer):
        with_image, memory = "Picture 1: <img>images/rgb.png</img>\nWhat is it?", model.new_memory()
        found = [model.chat(tokenizer, query, **GREEDY)[0] for query in ("Hello", with_image)]
        found += [model.chat(tokenizer, with_image, memory=memory, **GREEDY)[0] for _ in range(2)]
        found += model.chat_stream(tokenizer, with_image, memory=memory, **GREEDY)
        found.append(model.chat(tokenizer, with_image, num_beams=2, **GREEDY)[0])
        ids, _ = tokenizer.encode_message("<img></img>Hello")
        images = pixels(read_image("images/rgb.png"), model.config.visual["image_size"])[None]
        found.append(model.generate(torch.tensor([ids]), pixel_values=images, **GREEDY).tolist())
        turns = [{"from": "user", "value": with_image}, {"from": "assistant", "value": ""}]
        found += generation.answer(model, tokenizer, [{"id": "x", "conversations": turns}], max_new_tokens=4)
        with torch.no_grad():
            ids = torch.tensor([ids])
            found.append(model(ids, pixel_values=images, labels=ids, per_target_loss=True).loss.tolist())
        return found

    return ask


@pytest.fixture(scope="module")
def right():
    return []  # answers of the whole model, filled by the first test that needs them


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match")
@pytest.mark.parametrize("name", MAPS)
def test_offloaded_parts_answer_as_without(name, make_checkpoint, tokenizer, asked, right, tmp_path):
    if not right:
        right.extend(asked(QWenLMHeadModel.from_pretrained(make_checkpoint()).eval(), tokenizer))
    model = QWenLMHeadModel.from_pretrained(make_checkpoint(), offload_folder=tmp_path, **MAPS[name]).eval()
    assert any(parameter.is_meta for parameter in model.parameters())
    assert model.device.type == "cpu" and asked(model, tokenizer) == right


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
def test_parts_that_are_offloaded_after_loading(way, make_checkpoint, tokenizer, asked, right, tmp_path):
    import accelerate

    model = QWenLMHeadModel.from_pretrained(make_checkpoint()).eval()
    if not right:
        right.extend(asked(model, tokenizer))
    options = {"offload_dir": tmp_path} if way == "disk_offload" else {}
    getattr(accelerate, way)(model, execution_device="cpu", **options)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.device.type == "cpu" and asked(model, tokenizer) == right
