"""The model compared with the recorded original. Each decided difference is named at its case.

They are listed in docs/checkpoint_format.md section 8.
"""

import json

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.model.image_embedding_qwen import image_spans
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import pixels

RELATIVE = 1e-5
LEFT_PADDED = 3e-5  # the original's own difference between left-padded and unpadded rows

# docs/checkpoint_format.md section 8: NTK alpha and log-n follow each sequence's own length, not the padded one.
FOLLOWS_OWN_LENGTH = {"batch_left_pad_120"}
# docs/checkpoint_format.md section 8: the alpha of an evaluation does not leak into training.
NO_LEAK = {"train_mode_len50_after_eval200"}


def apart(found, recorded):
    """Return the largest difference as a share of the largest recorded value."""
    recorded = torch.as_tensor(np.asarray(recorded))
    return ((found - recorded).abs().max() / recorded.abs().max()).item()


def case_names(file):
    return sorted({key.split("/")[0] for key in file.files})


def inputs_of(file, case):
    mask = f"{case}/attention_mask"
    return {
        "input_ids": torch.from_numpy(file[f"{case}/input_ids"]).long(),
        "attention_mask": torch.from_numpy(file[mask]).long() if mask in file.files else None,
    }


def check_outputs(model, file, case, vocab_subset):
    """Compare every recorded field of a case at the positions that the mask keeps."""
    inputs = inputs_of(file, case)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    fields = [key.split("/")[1] for key in file.files if key.startswith(f"{case}/")]
    kept = file[f"{case}/argmax"].shape[1]  # long cases record their last tokens only
    logits, hidden = output.logits[:, -kept:], output.hidden_states[-1][:, -kept:]
    mask = inputs["attention_mask"]
    valid = torch.ones(logits.shape[:2], dtype=torch.bool) if mask is None else mask[:, -kept:].bool()
    tolerance = LEFT_PADDED if mask is not None and not mask[:, 0].all() else RELATIVE
    assert torch.equal(logits.argmax(-1)[valid], torch.from_numpy(file[f"{case}/argmax"]).long()[valid])
    found = {"hidden": hidden, "logsumexp": logits.logsumexp(-1), "logits_sub": logits[..., vocab_subset]}
    for field in set(found) & set(fields):
        assert apart(found[field][valid], file[f"{case}/{field}"][valid.numpy()]) < tolerance, field
    if valid[:, -1].all():
        top = torch.from_numpy(file[f"{case}/top20_last_ids"]).long()
        assert apart(logits[:, -1].gather(1, top), file[f"{case}/top20_last"]) < tolerance


def test_published_configuration_has_exactly_the_published_tensors():
    with torch.device("meta"):
        model = QWenLMHeadModel(QWenConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 853
    assert sum(parameter.numel() for parameter in model.parameters()) == 9_656_935_168
    assert shapes["transformer.h.31.attn.c_attn.weight"] == (12288, 4096)
    assert shapes["transformer.h.0.mlp.c_proj.weight"] == (4096, 11008)
    assert shapes["transformer.visual.conv1.weight"] == (1664, 3, 14, 14)
    assert shapes["transformer.visual.positional_embedding"] == (256, 1664)
    assert shapes["transformer.visual.transformer.resblocks.47.attn.in_proj.weight"] == (4992, 1664)
    assert shapes["transformer.visual.transformer.resblocks.0.mlp.c_fc.weight"] == (8192, 1664)
    assert shapes["transformer.visual.attn_pool.kv_proj.weight"] == (4096, 1664)
    assert shapes["transformer.visual.attn_pool.attn.in_proj_weight"] == (12288, 4096)
    assert "transformer.visual.conv1.bias" not in shapes and "transformer.h.0.attn.c_proj.bias" not in shapes


def test_config_keeps_what_it_does_not_obey(tmp_path):
    settings = {"bf16": True, "use_flash_attn": "auto", "onnx_safe": None, "tokenizer_type": "QWenTokenizer", "odd": 3}
    QWenConfig(**settings).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {key: saved[key] for key in settings} == settings
    assert "n_queries" not in saved["visual"] and QWenConfig.from_pretrained(tmp_path).image_span_tokens == 256
    with pytest.raises(ValueError, match="output_dim"):
        QWenConfig(hidden_size=128)
    with pytest.raises(ValueError, match="n_queries"):
        QWenConfig(visual={**QWenConfig().visual, "n_queries": 15})


def test_logits(golden, golden_model, in_golden_dir):
    file, subset = golden("logits_tiny.npz"), golden("model_facts.json")["vocab_subset"]
    cases = [case for case in case_names(file) if f"{case}/argmax" in file.files and not case.startswith("bf16")]
    assert cases
    for case in cases:
        check_outputs(golden_model, file, case, subset)


def test_eager_attention_gives_every_layer(golden, golden_model, in_golden_dir):
    file = golden("logits_tiny.npz")
    golden_model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = golden_model(**inputs_of(file, "text_layers"), output_hidden_states=True, output_attentions=True)
    finally:
        golden_model.set_attn_implementation("sdpa")
    assert apart(torch.stack(output.hidden_states), file["text_layers/hidden_all"]) < RELATIVE
    assert apart(torch.stack(output.attentions), file["text_layers/attn_all"]) < RELATIVE
    keys = torch.stack([layer.keys.transpose(1, 2) for layer in output.past_key_values.layers])
    assert apart(keys, file["text_layers/kv_k"]) < RELATIVE


def test_bfloat16_stays_near(golden, golden_model):
    file = golden("logits_tiny.npz")
    if "bf16_text/hidden" not in file.files:
        pytest.skip("no bfloat16 case in this golden set")
    config = golden_model.config
    model = QWenLMHeadModel(config)
    model.load_state_dict(golden_model.state_dict())
    with torch.no_grad():
        output = model.to(torch.bfloat16).eval()(**inputs_of(file, "bf16_text"), output_hidden_states=True)
    assert apart(output.hidden_states[-1].float(), file["bf16_text/hidden"]) < 0.02


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


def test_vision_tower(golden, golden_model, in_golden_dir):
    recorded, size = golden("vit_tiny.npz"), golden_model.config.visual["image_size"]
    with torch.no_grad():
        for name in recorded.files:
            image = read_image(f"images/{name}")
            if "scaled" in image.info:  # gray of more than 8 bits, which the original clips: our decision
                continue
            features = golden_model.transformer.visual(pixels(image, size)[None])
            assert apart(features[0], recorded[name]) < RELATIVE, name


def test_vision_stages_and_other_image_sizes(golden, golden_model, in_golden_dir):
    stages, tower = golden("vit_stages_tiny.npz"), golden_model.transformer.visual
    found = {}
    for name in ("attn_pool", "ln_post"):
        getattr(tower, name).register_forward_hook(lambda m, i, o, name=name: found.__setitem__(name, o))
    with torch.no_grad():
        picture = pixels(read_image("images/rgb.png"), golden_model.config.visual["image_size"])[None]
        found["out"] = tower(picture)
        first = dict(found)
        first["zeros224"] = tower(torch.zeros(1, 3, 224, 224))
        first["zeros448"] = tower(torch.zeros(1, 3, 448, 448))
    for name in set(first) & set(stages.files):
        assert apart(first[name], stages[name]) < RELATIVE, name


def spans_of(model, ids):
    return image_spans(ids, model.config.visual["image_start_id"], model.config.image_span_tokens)


def test_inputs_mean_the_same_however_they_come(golden, golden_model, in_golden_dir):
    """Check references, pixel_values, image_features, inputs_embeds, positions and logits_to_keep."""
    inputs, model = inputs_of(golden("logits_tiny.npz"), "one_image"), golden_model
    ids = inputs["input_ids"]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        picture = pixels(read_image("images/rgb.png"), model.config.visual["image_size"])[None]
        spans = spans_of(model, ids)
        reference = bytes(i for i in ids[0, spans[0, 1] :].tolist() if i < 256).split(b"\n")[0]
        assert b"images/rgb.png" in reference
        assert torch.equal(model(input_ids=ids, pixel_values=picture).logits, plain)
        features = model.transformer.visual(picture)
        assert torch.equal(model(input_ids=ids, image_features=features).logits, plain)
        embeds = model.transformer.embed(ids, image_features=features)
        assert torch.equal(model(inputs_embeds=embeds).logits, plain)
        shifted = model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None] + 7).logits
        assert apart(shifted, plain) < LEFT_PADDED  # rotation is relative
        reverse = torch.arange(ids.shape[1]).flip(0)[None]
        mask = torch.ones_like(ids)
        assert apart(model(input_ids=ids, position_ids=reverse, attention_mask=mask).logits, plain) > 0.01
        assert apart(model(input_ids=ids, logits_to_keep=1).logits, plain[:, -1:]) < RELATIVE
        assert apart(model(input_ids=ids, logits_to_keep=torch.tensor([3, 5])).logits, plain[:, [3, 5]]) < RELATIVE


def test_images_and_spans_must_match(golden, golden_model, in_golden_dir):
    ids = inputs_of(golden("logits_tiny.npz"), "one_image")["input_ids"]
    start = int(spans_of(golden_model, ids)[0, 1])
    size = golden_model.config.visual["image_size"]
    with pytest.raises(ValueError, match="2 images were passed but the ids hold 1"):
        golden_model(input_ids=ids, pixel_values=torch.zeros(2, 3, size, size))
    with pytest.raises(ValueError, match="cut or not closed"):
        golden_model(input_ids=ids[:, : start + 100])
    nameless = ids.clone()
    nameless[:, start : start + 256] = golden_model.config.visual["image_start_id"] + 2
    with pytest.raises(ValueError, match="names no image"):
        golden_model(input_ids=nameless)


@pytest.mark.parametrize("mode", ["from_config", "meta"])
def test_random_weights_are_finite_and_tables_are_not_random(mode, tmp_path):
    visual = {"heads": 2, "image_size": 32, "image_start_id": 100, "layers": 1, "mlp_ratio": 2.0}
    visual |= {"output_dim": 32, "patch_size": 8, "width": 16, "n_queries": 4}
    config = QWenConfig(
        vocab_size=110, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, kv_channels=16,
        intermediate_size=64, visual=visual,
    )  # fmt: skip
    model = QWenLMHeadModel(config)
    if mode == "meta":  # built as from_pretrained builds it
        model.save_pretrained(tmp_path)
        model = QWenLMHeadModel.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 100, *[102] * 4, 101, 5]])
    assert model(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32)).logits.isfinite().all()
    table = model.transformer.visual.attn_pool.pos_embed
    assert table.shape == (4, 32) and table[0, :8].abs().sum() == 0 and table[0, 8:16].tolist() == [1.0] * 8
    model(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32), labels=ids).loss.backward()
    assert table.grad is None and model.transformer.visual.attn_pool.query.grad is not None
