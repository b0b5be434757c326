"""Passes under a serving engine: continuous batching with the tokens of `generate`, ids of images, nothing opened."""

import ast
import copy
import inspect
import json
import textwrap

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, ContinuousBatchingConfig, GenerationConfig, PreTrainedConfig

from qwen_vl.checkpoint import loading
from qwen_vl.model import QWenConfig, QWenLMHeadModel, QWenTokenizer
from qwen_vl.model.cache_qwen import GrowingCache
from qwen_vl.model.decoder_qwen import QWenAttention
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
    span, contrast = model.config.image_span_tokens, torch.tensor([0.1, 10.0])  # two images that clearly differ
    pixels = contrast[:, None, None, None] * torch.randn(2, 3, size, size)
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


def test_an_engine_passes_positions_no_images_and_no_cache_of_ours(make_checkpoint):
    model = loading.load_model(make_checkpoint()).eval()
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="position_ids: an engine"):
        model(input_ids=ids, cache=object())
    with pytest.raises(ValueError, match="taken for that of a serving engine"):
        model(input_ids=ids, position_ids=ids, past_key_values=GrowingCache(model.config), cache=object())
    with pytest.raises(ValueError, match="takes no images"):
        model(input_ids=ids, position_ids=ids, pixel_values=torch.zeros(1, 3, 64, 64), cache=object())


def test_the_text_config_is_an_object_of_its_own_and_follows(make_checkpoint):
    config = QWenConfig.from_pretrained(make_checkpoint())
    part = config.get_text_config()
    assert part != config and type(part) is not type(config) and not isinstance(part, QWenConfig)
    assert not [value for value in vars(part).values() if isinstance(value, PreTrainedConfig)]  # no way back
    assert (part.head_dim, part.vocab_size, part.num_attention_heads) == (32, config.vocab_size, 2)
    config.seq_length = 99
    assert part.seq_length == 99
    twin = copy.deepcopy(config)
    twin.seq_length = 5
    assert (twin.get_text_config().seq_length, part.seq_length) == (5, 99)
    assert "text_config" not in config.to_dict() and "text_config" not in config.to_json_string()
    assert QWenConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_an_engine_sets_the_attention_of_the_decoder_alone(make_checkpoint):
    config = QWenConfig.from_pretrained(make_checkpoint())
    config.get_text_config()._attn_implementation = "vllm"
    with torch.device("meta"):
        model = QWenLMHeadModel(config)
    assert model.transformer.h[0].attn.config._attn_implementation == "vllm"
    assert model.transformer.visual.transformer.resblocks[0].attn.config._attn_implementation == "sdpa"
    loaded = loading.load_model(make_checkpoint())
    for name in ("eager", "sdpa"):
        loaded.set_attn_implementation(name)
        assert loaded.transformer.h[0].attn.config._attn_implementation == name


def test_vllm_finds_what_it_divides_and_replaces(make_checkpoint):
    """Check what vLLM reads in the source of `forward`: which linear is divided, the one call, its scale."""
    source = textwrap.dedent(inspect.getsource(QWenAttention.forward))
    tree = ast.parse(source)
    assert next(iter(inspect.signature(QWenAttention.forward).parameters)) == "self"
    assert list(inspect.signature(QWenAttention.forward).parameters)[1] == "hidden_states"
    looked_up = {
        node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("ALL_ATTENTION_FUNCTIONS.get_interface(")
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id in looked_up]
    (scale,) = [ast.unparse(word.value) for word in call.keywords if word.arg == "scaling"]
    assert [word for word in call.keywords if word.arg is None]  # **kwargs go down
    assert source.count("self.c_attn(hidden_states).split((self.width, self.width, self.width), dim=-1)") == 1
    model = loading.load_model(make_checkpoint())
    attention = model.transformer.h[1].attn
    assert scale.startswith("self.") and isinstance(getattr(attention, scale.removeprefix("self.")), float)
    assert isinstance(attention.width, int) and attention.layer_idx == 1 and attention.is_causal
    linears = [name for name, module in model.transformer.h.named_modules() if isinstance(module, nn.Linear)]
    plan = {rule.replace("h.*.", ""): way for rule, way in model.config.base_model_tp_plan.items()}
    assert {name.split(".", 1)[1] for name in linears} == {*plan, "attn.c_attn"}
    assert type(model.transformer.ln_f).__name__.endswith("RMSNorm") and model.transformer.ln_f.eps == 1e-6


def test_an_engine_finds_decoder_and_features(make_checkpoint):
    model = loading.load_model(make_checkpoint()).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.get_image_features(pixels, return_dict=True).pooler_output
        assert torch.equal(features, model.transformer.visual(pixels))
        assert torch.equal(features, model.transformer.get_image_features(pixels).pooler_output)
    assert features.shape == (2, 16, 64)
    assert model.transformer.text_model is model.transformer is model.get_decoder()
    assert model.transformer.get_input_embeddings() is model.transformer.wte


def test_resized_embeddings_change_both_configs(make_checkpoint):
    model = loading.load_model(make_checkpoint())
    model.resize_token_embeddings(1300)
    assert model.config.vocab_size == model.config.get_text_config().vocab_size == 1300


def test_a_saved_folder_names_every_end_of_an_answer(make_checkpoint, tmp_path):
    tokenizer = QWenTokenizer.from_pretrained(make_checkpoint())
    for chat_format, expected in (
        ("chatml", [tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id]),
        ("raw", tokenizer.eod_id),
    ):
        model = loading.load_model(make_checkpoint(chat_format))
        model.generation_config.eos_token_id = tokenizer.eod_id  # as in the published folders
        model.save_pretrained(tmp_path / chat_format)
        settings = json.loads((tmp_path / chat_format / "generation_config.json").read_text())
        assert settings["eos_token_id"] == expected
        assert model.generation_config.eos_token_id == tokenizer.eod_id


def test_no_pass_under_an_engine_waits_for_the_device(make_checkpoint):
    """Check on the meta device, where reading a value fails."""
    with torch.device("meta"):
        model = QWenLMHeadModel(QWenConfig.from_pretrained(make_checkpoint())).eval()
        ids = torch.zeros(1, 3, dtype=torch.int)
        model.config.get_text_config()._attn_implementation = "vllm"
        AttentionInterface.register("vllm", lambda module, query, *states, **options: (query.transpose(1, 2), None))
        try:
            assert model(input_ids=ids, position_ids=ids, use_cache=False).logits.shape[:2] == (1, 3)
        finally:
            del AttentionInterface._global_mapping["vllm"]
