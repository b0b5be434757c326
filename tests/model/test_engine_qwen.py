"""Passes under a serving engine: continuous batching with the tokens of `generate`, ids of images, nothing opened."""

import pytest
import torch
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig

from qwen_vl.checkpoint import loading
from qwen_vl.model import QWenConfig, QWenTokenizer
from qwen_vl.model.engine_qwen import is_engine_pass
from qwen_vl.model.image_embedding_qwen import ImageEmbedding

NEW_TOKENS = 8


class ImageTable(nn.Module):
    """Embeddings of ids, and of ids from `vocab_size` on the rows of a table."""

    def __init__(self, wte, rows):
        super().__init__()
        self.wte, self.rows = wte, rows

    def forward(self, ids):
        first = self.wte.num_embeddings
        known = self.wte(ids.clamp(max=first - 1))
        return torch.where((ids >= first)[..., None], self.rows[(ids - first).clamp(min=0)], known)


@pytest.fixture(params=["sdpa", "eager"])
def model(request, make_checkpoint):
    return loading.load_model(make_checkpoint(), attn_implementation=request.param).eval()


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint):
    return QWenTokenizer.from_pretrained(make_checkpoint())


def generated(model, **inputs):
    """Return the new ids of one greedy row."""
    output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=-1, top_p=None)
    return output[0, -NEW_TOKENS:].tolist()


def batched(model, prompts):
    """Return the new ids of several prompts, by transformers' continuous batching with prefill in small pieces."""
    settings = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=-1)
    pages = ContinuousBatchingConfig(
        page_size=16, num_blocks=32, max_batch_tokens=24, allow_block_sharing=False, auto_switch_to_flash=False
    )
    manager = model.init_continuous_batching(generation_config=settings, continuous_batching_config=pages)
    manager.start()
    try:
        names = [manager.add_request(list(ids), max_new_tokens=NEW_TOKENS) for ids in prompts]
        done = {}
        while len(done) < len(names):
            result = manager.get_result(timeout=60)
            assert result is not None, "no result within a minute"
            assert result.error is None, result.error
            if result.is_finished():
                done[result.request_id] = result.generated_tokens
    finally:
        manager.stop(block=True)
    return [done[name] for name in names]


def test_continuous_batching_gives_the_tokens_of_generate(model, tokenizer):
    prompts = [tokenizer.encode(text) for text in ("Hello, who are you?", "A red circle", "x " * 30)]
    expected = [generated(model, input_ids=torch.tensor([ids])) for ids in prompts]
    assert batched(model, prompts) == expected
    assert len({tuple(ids) for ids in expected}) > 1


def test_ids_of_a_table_give_the_tokens_of_images(model, tokenizer):
    ids, size = tokenizer.encode_message("Picture 1: <img></img>\nWhat?")[0], model.config.visual["image_size"]
    pixels, span = torch.randn(2, 3, size, size), model.config.image_span_tokens
    expected = [generated(model, input_ids=torch.tensor([ids]), pixel_values=image[None]) for image in pixels]
    with torch.no_grad():
        rows = model.transformer.visual(pixels).flatten(0, 1)  # [2 * span, hidden]
    start, prompts = ids.index(tokenizer.img_start_id) + 1, []
    for number in range(2):
        first = model.config.vocab_size + number * span
        prompts.append([*ids[:start], *range(first, first + span), *ids[start + span :]])
    model.set_input_embeddings(ImageTable(model.transformer.wte, rows))
    assert batched(model, prompts) == expected
    assert expected[0] != expected[1]


def test_an_engine_opens_no_image_and_searches_no_span(model, tokenizer, monkeypatch):
    ids = [*tokenizer.encode_message("<img>/etc/x</img>")[0], tokenizer.img_start_id]  # a whole span and a cut one
    opened = []
    monkeypatch.setattr(ImageEmbedding, "embed", lambda *args: opened.append(args))
    assert len(batched(model, [ids])[0]) == NEW_TOKENS
    assert opened == []


def test_the_vision_tower_computes_beside_a_running_engine(model):
    size = model.config.visual["image_size"]
    pixels = torch.randn(1, 3, size, size)
    with torch.no_grad():
        before = model.transformer.visual(pixels)
        if model.config._attn_implementation == "eager":
            model.set_attn_implementation("paged|eager")
        assert torch.equal(model.transformer.visual(pixels), before)


@pytest.mark.parametrize(
    "implementation, arguments, expected",
    [
        ("sdpa", {}, False),
        ("eager", {"cache": None}, False),
        ("flash_attention_2", {}, False),
        ("flex_attention", {}, False),
        ("sdpa", {"cache": object()}, True),
        ("paged|eager", {}, True),
        ("vllm", {}, True),
        ("sglang", {}, True),
    ],
)
def test_whose_pass_it_is(implementation, arguments, expected):
    config = QWenConfig()
    config._attn_implementation_internal = implementation
    assert is_engine_pass(config, arguments) == expected


def test_an_engine_passes_positions_and_no_images(make_checkpoint):
    model = loading.load_model(make_checkpoint()).eval()
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="position_ids: an engine"):
        model(input_ids=ids, cache=object())
    with pytest.raises(ValueError, match="takes no images"):
        model(input_ids=ids, position_ids=ids, pixel_values=torch.zeros(1, 3, 64, 64), cache=object())
