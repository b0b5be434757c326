"""Steps without images leave the vision tower unchanged."""

import torch
from helpers import runs


def test_text_alone_changes_nothing_of_the_vision_tower(make_checkpoint, tmp_path):
    """Check that there is no update and no weight decay."""
    data = runs.write_data(tmp_path, [sample for sample in runs.TEXTS if sample[0] is None])
    trained = runs.train(make_checkpoint(), tmp_path / "out", "--fix_vit", "False", data_path=data, weight_decay=0.5)
    before, after = runs.weights(make_checkpoint()), runs.weights(trained)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".visual." not in name}


def test_a_batch_in_which_nothing_trains_is_skipped(make_checkpoint, tmp_path):
    """Check adapters in the ViT with a batch without images: no gradient, no update, and no error of torch."""
    settings = {"per_device_train_batch_size": 1, "max_steps": 2, "train_sampling_strategy": "sequential"}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    data = runs.write_data(tmp_path, [runs.TEXTS[1], runs.TEXTS[0]])
    out = runs.train(
        make_checkpoint(), tmp_path / "out", "--use_lora", "--lora_target_modules", "vision", data_path=data, **settings
    )
    first, second = (runs.weights(out / f"checkpoint-{step}") for step in (1, 2))
    moved = {name for name in first if not bool((first[name] == second[name]).all())}
    assert {name for name in first if ".lora_B" in name and not first[name].any()} == moved
    assert runs.losses(out, "grad_norm")[0] == 0 < runs.losses(out, "grad_norm")[1]
