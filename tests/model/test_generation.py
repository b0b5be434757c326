"""Generation compared with the recorded original: greedy, beams, sampling, stop words, batches, long prompts."""

import pytest
import torch

from qwen_vl.model import cache_qwen
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import pixels

PLAIN = [
    "greedy_text", "greedy_image", "greedy_three", "greedy_text_nocache", "greedy_image_nocache", "caption_settings",
    "beam3_text", "beam2_image", "repetition_penalty", "stop_word_third_token", "stop_word_two_tokens",
    "stop_word_is_eos", "eos_is_first_greedy", "stop_word_last_of_prompt", "batch_left_pad_greedy",
    "batch_left_pad_no_mask", "batch_right_pad_greedy", "with_token_type_ids",
]  # fmt: skip
SAMPLED = ["sample_default_text", "sample_topp_image", "sample_topk", "num_return_sequences"]


@pytest.fixture
def recorded(golden):
    cases = golden("generate.json")
    return next(iter(cases.values()))  # one checkpoint a file


def generate(model, case):
    options = dict(case["kw"])
    for name in ("attention_mask", "token_type_ids"):
        if name in options:
            options[name] = torch.tensor(options[name])
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
    return model.generate(torch.tensor(case["input_ids"]), **options).tolist()


@pytest.mark.parametrize("name", PLAIN + SAMPLED)
def test_generated_ids(name, golden_model, recorded, in_golden_dir):
    if name not in recorded:
        pytest.skip("not in this golden set")
    # The original's left-padded rows differ from unpadded ones in the last bits; ours must have the same ids.
    assert generate(golden_model, recorded[name]) == recorded[name]["output_ids"]


def test_stop_words_must_be_lists_of_ids(golden_model, recorded):
    for malformed in ([], [[]], "stop", [["a"]], [[-1]]):
        with pytest.raises(ValueError, match="stop_words_ids"):
            golden_model.generate(torch.tensor([[785]]), stop_words_ids=malformed, max_new_tokens=1)


@pytest.mark.parametrize("suffix", ["", "_nocache"])
def test_generation_past_the_trained_length(suffix, seq64_model, recorded):
    case = recorded.get(f"seq64_generate_60_plus_20{suffix}")
    if case is None:
        pytest.skip("not in this golden set")
    ids = seq64_model.generate(
        torch.tensor(case["input_ids"]), do_sample=False, max_new_tokens=20, use_cache=not suffix
    ).tolist()
    assert ids == case["output_ids"]


def test_images_of_several_rows_follow_their_beams(golden_model, recorded, in_golden_dir):
    """Check that two rows with one and two images as pixel_values give the beams that each row gives alone."""
    one, three = (torch.tensor(recorded[name]["input_ids"]) for name in ("greedy_image", "greedy_three"))
    length = max(one.shape[1], three.shape[1])
    rows, mask = [], []
    for ids in (one, three):
        padding = length - ids.shape[1]
        rows.append(torch.cat([torch.full((1, padding), golden_model.generation_config.pad_token_id), ids], dim=1))
        mask.append(torch.tensor([[0] * padding + [1] * ids.shape[1]]))
    size = golden_model.config.visual["image_size"]
    names = ["rgb.png", "photo.jpg", "palette.png", "rgba.png"]
    values = torch.stack([pixels(read_image(f"images/{name}"), size) for name in names])
    options = {"do_sample": False, "num_beams": 2, "max_new_tokens": 5}
    together = golden_model.generate(torch.cat(rows), attention_mask=torch.cat(mask), pixel_values=values, **options)
    for row, ids in enumerate((one, three)):
        alone = golden_model.generate(ids, **options)
        assert together[row, length:].tolist() == alone[0, ids.shape[1] :].tolist()


def test_the_prefill_makes_logits_for_one_position_and_keeps_our_cache(golden_model, recorded):
    shapes = []
    hook = golden_model.lm_head.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[1]))
    ids = torch.tensor([[785, 786, 787, 788]])
    try:
        output = golden_model.generate(ids, do_sample=False, max_new_tokens=3, return_dict_in_generate=True)
    finally:
        hook.remove()
    assert shapes == [1] * (output.sequences.shape[1] - 4)
    assert isinstance(output.past_key_values, cache_qwen.GrowingCache)
