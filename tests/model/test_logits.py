"""Logits that are not finite: one clear error in every way of generation; masks are allowed."""

import pytest
import torch
from PIL import Image
from transformers import LogitsProcessor

from qwen_vl.evaluation import generation
from qwen_vl.model import QWenLMHeadModel, QWenTokenizer
from qwen_vl.model.logits_qwen import FiniteScores, LogitsError

GREEDY = {"do_sample": False, "max_new_tokens": 6}
NOT_FINITE = r"logits are not finite .*damaged, or float16 overflows: try --dtype bfloat16"


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint):
    return QWenTokenizer.from_pretrained(make_checkpoint())


@pytest.fixture
def model(make_checkpoint):
    return QWenLMHeadModel.from_pretrained(make_checkpoint()).eval()


def answer_of_the_runner(model, tokenizer, **options):
    turns = [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "hello"}]
    return generation.answer(model, tokenizer, [{"id": "x", "conversations": turns}] * 2, max_new_tokens=6)


WAYS = {
    "greedy": lambda model, tokenizer: model.chat(tokenizer, "hi", **GREEDY),
    "sampling": lambda model, tokenizer: model.chat(tokenizer, "hi", do_sample=True, max_new_tokens=6),
    "beams": lambda model, tokenizer: model.chat(tokenizer, "hi", num_beams=2, **GREEDY),
    "assisted": lambda model, tokenizer: model.chat(tokenizer, "hi", prompt_lookup_num_tokens=2, **GREEDY),
    "without a cache": lambda model, tokenizer: model.chat(tokenizer, "hi", use_cache=False, **GREEDY),
    "with a memory": lambda model, tokenizer: model.chat(tokenizer, "hi", memory=model.new_memory(), **GREEDY),
    "stream": lambda model, tokenizer: list(model.chat_stream(tokenizer, "hi", max_new_tokens=6)),
    "generate": lambda model, tokenizer: model.generate(torch.tensor([[1, 2], [3, 4]]), max_new_tokens=2),
    "evaluation": answer_of_the_runner,
}


def nan_weight(model):
    model.transformer.h[0].mlp.w1.weight.data[0, 0] = float("nan")


def infinite_weight(model):
    model.lm_head.weight.data[7:9, 0] = torch.tensor([1, -1]) * float("inf")  # one of the two logits is +inf


def overflow(model):
    model.half()
    model.transformer.h[1].mlp.c_proj.weight.data.fill_(6e4)
    model.lm_head.weight.data.fill_(6e4)


def negative_infinity_everywhere(model):
    model.lm_head.register_forward_hook(lambda module, args, output: torch.full_like(output, -float("inf")))


def nan_of_a_masked_token(model):
    model.lm_head.weight.data[9] = float("nan")
    model.generation_config.suppress_tokens = [9]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", [nan_weight, infinite_weight])
def test_every_way_of_generation_checks(damage, way, model, tokenizer):
    WAYS[way](model, tokenizer)
    damage(model)
    with pytest.raises(ValueError, match=NOT_FINITE):
        WAYS[way](model, tokenizer)


@pytest.mark.parametrize("damage", [overflow, negative_infinity_everywhere, nan_of_a_masked_token])
def test_every_kind_is_seen(damage, model, tokenizer):
    damage(model)
    for way in ("greedy", "sampling", "beams"):
        with pytest.raises(LogitsError, match=NOT_FINITE):
            WAYS[way](model, tokenizer)


def test_a_late_one_ends_a_stream_before_it_shows(model, tokenizer):
    passes = []

    def spoil(module, args, output):
        passes.append(1)
        return output * float("nan") if len(passes) > 3 else output

    model.generation_config.suppress_tokens = [tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id]
    model.lm_head.register_forward_hook(spoil)
    stream = model.chat_stream(tokenizer, "hi", do_sample=False, max_new_tokens=9)
    for _ in range(3):
        next(stream)
    with pytest.raises(LogitsError):
        next(stream)


def test_a_damaged_tower_shows_with_an_image(model, tokenizer, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    model.transformer.visual.proj.data[0] = float("nan")
    model.chat(tokenizer, "hi", **GREEDY)
    memory = model.new_memory()
    for options in ({}, {"memory": memory}):
        with pytest.raises(LogitsError):
            model.chat(tokenizer, f"<img>{tmp_path / 'x.png'}</img>", **options, **GREEDY)
    assert memory.cache is None


class Only(LogitsProcessor):
    """A processor that masks all tokens but those of `kept`."""

    def __init__(self, *kept):
        self.kept = list(kept)

    def __call__(self, input_ids, scores):
        masked = torch.full_like(scores, -float("inf"))
        masked[:, self.kept] = scores[:, self.kept]
        return masked


def test_masks_of_the_user_are_fine_until_nothing_is_left(model, tokenizer):
    for options in ({"do_sample": False}, {"do_sample": True}, {"do_sample": False, "num_beams": 2}):
        options |= {"max_new_tokens": 3}
        assert model.chat(tokenizer, "hi", logits_processor=[Only(33)], **options)[0] == "B" * 3
        with pytest.raises(LogitsError, match=r"no token is left to choose from: .* logits_processor"):
            model.chat(tokenizer, "hi", logits_processor=[Only()], **options)
    model.lm_head.register_forward_hook(
        lambda module, args, output: output.index_fill(-1, torch.arange(32), -torch.inf)
    )
    model.chat(tokenizer, "hi", **GREEDY)  # a mask in the model itself


def test_what_is_to_be_removed_is_removed(model, tokenizer):
    nan_weight(model)
    model.chat(tokenizer, "hi", remove_invalid_values=True, **GREEDY)


def test_a_device_is_asked_now_and_then():
    """Check that the host does not wait between two checks, and that scores that cannot be sampled are replaced."""
    check, ids, fine = FiniteScores("wrong", every=4), None, torch.zeros(2, 5)
    bad = torch.stack([torch.full((5,), float("nan")), torch.arange(5.0)])
    check(ids, fine)
    assert check(ids, bad).tolist() == [[0.0] * 5, [0.0, 1, 2, 3, 4]]
    check(ids, fine), check(ids, fine)
    with pytest.raises(LogitsError, match="wrong"):
        check(ids, fine)
    late = FiniteScores("wrong", every=4)
    late(ids, fine), late(ids, bad)
    with pytest.raises(LogitsError, match="wrong"):
        late.look()
