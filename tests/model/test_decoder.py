"""Positions of the decoder: dynamic NTK and log-n scaling, in prefill and decoding."""

import torch
from helpers.recorded import LEFT_PADDED, RELATIVE, apart, case_names, check_outputs, inputs_of
from transformers import DynamicCache

# docs/checkpoint_format.md section 8: NTK alpha and log-n follow each sequence's own length, not the padded one.
FOLLOWS_OWN_LENGTH = {"batch_left_pad_120"}


# docs/checkpoint_format.md section 8: the alpha of an evaluation does not leak into training.
NO_LEAK = {"train_mode_len50_after_eval200"}


def test_ntk_and_logn(golden, seq64_model, in_golden_dir):
    file, subset = golden("seq64_tiny.npz"), golden("seq64_facts.json")["vocab_subset"]
    for case in case_names(file):
        if f"{case}/hidden" not in file.files or case in FOLLOWS_OWN_LENGTH | NO_LEAK:
            continue
        seq64_model.train(case.startswith("train_mode"))
        check_outputs(seq64_model, file, case, subset)


def test_alpha_is_each_sequence_own_matter(golden, seq64_model):
    """Check what replaces the original's behavior in the decided differences of this file."""
    file = golden("seq64_tiny.npz")
    inputs = inputs_of(file, "batch_left_pad_120")
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        together = seq64_model(**inputs).logits
        for row in range(len(mask)):
            alone = seq64_model(input_ids=inputs["input_ids"][row : row + 1, mask[row]]).logits[0]
            assert apart(together[row, mask[row]], alone) < LEFT_PADDED
        short = inputs_of(file, "train_mode_len50_after_eval200")["input_ids"]
        fresh = seq64_model.train()(input_ids=short).logits
        seq64_model.eval()(input_ids=inputs["input_ids"])
        assert torch.equal(seq64_model.train()(input_ids=short).logits, fresh)


def test_decoding_keeps_the_alpha_of_its_prefill(golden, seq64_model):
    file, facts = golden("seq64_tiny.npz"), golden("seq64_facts.json")
    prompt = inputs_of(file, "fresh_257")["input_ids"]
    for case in [case for case in case_names(file) if case.startswith("incr_")]:
        start, end = int(file[f"{case}/n0"]), int(file[f"{case}/n1"])
        ids = prompt if f"{case}/input_ids" not in file.files else torch.from_numpy(file[f"{case}/input_ids"]).long()
        cache, steps = DynamicCache(config=seq64_model.config), []
        with torch.no_grad():
            steps.append(seq64_model(input_ids=ids[:, :start], past_key_values=cache).logits[0, -1])
            for n in range(start, end):
                steps.append(seq64_model(input_ids=ids[:, n : n + 1], past_key_values=cache).logits[0, -1])
        assert cache.ntk_alpha is None or cache.ntk_alpha.tolist() == [float(file[f"{case}/alpha"])]
        assert torch.stack(steps).argmax(-1).tolist() == file[f"{case}/argmax"].tolist()
        assert apart(torch.stack(steps)[:, facts["vocab_subset"]], file[f"{case}/logits_sub"]) < RELATIVE


def test_two_prompts_decoded_in_turn_do_not_touch_each_other(seq64_model):
    generator = torch.Generator().manual_seed(0)
    first, other = (torch.randint(0, 1000, (1, n), generator=generator) for n in (40, 100))
    with torch.no_grad():
        cache = seq64_model(input_ids=first, use_cache=True).past_key_values
        alone = seq64_model(input_ids=first[:, -1:], past_key_values=cache).logits
        cache = seq64_model(input_ids=first, use_cache=True).past_key_values
        seq64_model(input_ids=other)
        assert torch.equal(seq64_model(input_ids=first[:, -1:], past_key_values=cache).logits, alone)
