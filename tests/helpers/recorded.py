"""Outputs of a model compared with the recorded original."""

import numpy as np
import torch

RELATIVE = 1e-5


LEFT_PADDED = 3e-5  # the original's own difference between left-padded and unpadded rows


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
