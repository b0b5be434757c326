"""Images in the embeddings: every input that stands for an image, and spans that do not fit."""

import pytest
import torch
from helpers.recorded import LEFT_PADDED, RELATIVE, apart, inputs_of

from qwen_vl.model.image_embedding_qwen import image_spans
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import pixels


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
