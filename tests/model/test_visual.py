"""The vision tower: recorded features, no backward pass of frozen parts, and each image encoded once."""

import pytest
import torch
from helpers.recorded import RELATIVE, apart

from qwen_vl.checkpoint import loading
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.training import tuning


@pytest.fixture
def model(make_checkpoint):
    return loading.load_model(make_checkpoint()).train()


def ids_of(model, images=3):
    """Return one row of ids with images, and its labels."""
    start, span = model.config.visual["image_start_id"], model.config.image_span_tokens
    ids = torch.tensor([[1, *[start, *[start + 2] * span, start + 1, 5, 6] * images, 7, 8, 9]])
    return ids, ids.where(ids < 10, -100)


def gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_vit_leaves_nothing_for_the_backward_pass(model, checkpointing):
    """Check that, and that the resampler's gradients are those with a ViT that trains."""
    ids, labels = ids_of(model)
    inputs = {"input_ids": ids, "labels": labels, "pixel_values": torch.rand(3, 3, 64, 64), "use_cache": False}
    loss, expected = gradients(tuning.freeze_for_full(model, fix_vit=False), **inputs)
    tuning.freeze_for_full(model, fix_vit=True)
    if checkpointing:
        model.activation_checkpointing_enable(every_n_layers=2)
        assert [block.gradient_checkpointing for block in model.transformer.h] == [True, False]
        assert not any(block.gradient_checkpointing for block in model.transformer.visual.transformer.resblocks)
    outputs, visual = [], model.transformer.visual
    hook = visual.transformer.register_forward_hook(lambda module, args, output: outputs.append(output))
    frozen_loss, ours = gradients(model, **inputs)
    hook.remove()
    assert len(outputs) == 1 and not outputs[0].requires_grad
    assert frozen_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert set(ours) == {name for name in expected if ".visual." not in name or ".attn_pool." in name}
    for name, gradient in ours.items():
        assert (gradient - expected[name]).norm() <= 2e-6 * expected[name].norm() + 1e-9, name


@pytest.mark.parametrize("fix_vit", [True, False])
def test_images_that_repeat_are_encoded_once(model, fix_vit):
    tuning.freeze_for_full(model, fix_vit=fix_vit)
    (ids, labels), two, index = ids_of(model), torch.rand(2, 3, 64, 64), torch.tensor([1, 0, 1])
    loss, expected = gradients(model, input_ids=ids, labels=labels, pixel_values=two[index])
    again, ours = gradients(model, input_ids=ids, labels=labels, pixel_values=two, image_index=index)
    assert again.item() == pytest.approx(loss.item(), rel=1e-6) and ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert (gradient - expected[name]).norm() <= 5e-6 * expected[name].norm() + 1e-9, name
    with pytest.raises(ValueError, match="2 images were passed but the ids hold 3"):
        model(input_ids=ids, pixel_values=two, image_index=index[:2])


def test_features_in_place_of_images(model):
    """Check features of the ViT, with gradients of the resampler, and of the whole tower."""
    tuning.freeze_for_full(model, fix_vit=True)
    (ids, labels), images = ids_of(model), torch.rand(3, 3, 64, 64)
    loss, expected = gradients(model, input_ids=ids, labels=labels, pixel_values=images)
    features = model.transformer.visual.encode(images).detach()
    again, ours = gradients(model, input_ids=ids, labels=labels, vit_features=features)
    assert torch.equal(again, loss) and all(torch.equal(ours[name], expected[name]) for name in expected)
    ready = model.transformer.visual(images).detach()
    assert torch.equal(model(input_ids=ids, labels=labels, image_features=ready).loss, loss)


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
