"""Loss and gradients of full and LoRA training of our trainable parameters, compared with recorded ones.

Decided differences: `attn_pool.pos_embed` never trains here, so its recorded gradient has no counterpart; a batch
without images gives the vision tower no gradient where the original may have zeros; the case recorded after an
evaluation shows the original's NTK factor leaking into training; `hook_nockpt` has random adapters.
"""

import json
from pathlib import Path

import make_weights  # lies in the golden folder
import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from qwen_vl.adapters import build as adapters_build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.data.chatml import encode
from qwen_vl.model import QWenConfig, QWenLMHeadModel, QWenTokenizer
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.training import tuning

GOLDEN_DIR = Path(make_weights.__file__).parent
FOLDER = next(path for path in (GOLDEN_DIR / "ckpt").iterdir() if path.is_dir())
TAG = FOLDER.name
ARRAYS = next(GOLDEN_DIR.glob("train_*.npz")).name
FROZEN = "transformer.visual.attn_pool.pos_embed"


def cases():
    """Return the names of the recorded cases that apply; of two variants, `i` is the one to match."""
    recorded = json.loads((GOLDEN_DIR / "train.json").read_text(encoding="utf-8"))
    with_gradients = {key for key, value in recorded.items() if isinstance(value, dict) and "grad_norm" in value}
    apply = {key for key in with_gradients if "hook" not in key and "after_eval" not in key}
    return sorted(key for key in apply if "/x/" not in key or key.replace("/x/", "/i/") not in apply)


@pytest.fixture(scope="module")
def tokenizer(published_vocab):
    return QWenTokenizer(published_vocab)


@pytest.fixture(scope="module")
def build(golden):
    """Return a function that gives the golden model set up for a training mode."""
    from make_weights import weight

    shapes = golden(f"ckpt/{TAG}/shapes.json")
    weights = {name: torch.from_numpy(weight(TAG, name, shape)) for name, shape in shapes.items()}

    def make(mode, seq_length=None):
        config = QWenConfig.from_pretrained(FOLDER)
        config.seq_length = seq_length or config.seq_length
        with torch.device("meta"):
            model = QWenLMHeadModel(config)
        model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
        if mode.startswith("full"):
            tuning.freeze_for_full(model, fix_vit="unfrozen_vit" not in mode)
        else:
            model.generation_config.chat_format = "chatml" if "chat" in mode else "raw"
            model = adapters_build.add_adapters(
                model, LoraOptions(dropout=0.0, modules_to_save=adapters_build.whole_modules(model))
            )
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.data = torch.from_numpy(weight(f"{TAG}:lora", name, tuple(parameter.shape)))
        if mode.endswith("gradckpt"):
            model.gradient_checkpointing_enable()
            if "lora" in mode:
                model.enable_input_require_grads()
        return model.train()

    return make


@pytest.fixture(scope="module")
def batch(golden, tokenizer):
    """Return a function that gives the model inputs of a recorded batch."""

    def make(name):
        recorded = golden("train_batches.json")[name]
        samples = [encode(turns, tokenizer) for turns in recorded["conversations"]]
        rows, labels = (
            [torch.tensor(sample[key][: recorded["max_len"]]) for sample in samples] for key in ("input_ids", "labels")
        )
        inputs = {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=tokenizer.eod_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        }
        images = [read_image(name, search_dirs=[GOLDEN_DIR]) for sample in samples for name in sample["images"]]
        if images:
            inputs["pixel_values"] = torch.stack([pixels(image) for image in images])
        return inputs

    return make


def close(ours, recorded, what):
    difference, scale = np.abs(ours.detach().numpy() - recorded).max(), np.abs(recorded).max()
    assert difference <= 1e-5 * scale, f"{what}: {difference:.1e} of {scale:.1e}"


@pytest.mark.parametrize("case", cases())
def test_loss_and_gradients_equal_the_reference(golden, build, batch, case):
    recorded = golden("train.json")[case]
    tag, _, mode, name = case.split("/")
    model = build(mode, seq_length=64 if tag.endswith("seq64") else None)
    loss = model(**batch(name.removesuffix("_fresh"))).loss
    loss.backward()
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-5)

    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    # No gradient counts as a zero one.
    gradients = {key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in trained.items()}
    ignored = {FROZEN} | {key for key in recorded["grad_norm"] if "original_module" in key}
    assert gradients.keys() == recorded["grad_norm"].keys() - ignored
    for key, gradient in gradients.items():
        assert gradient.double().norm().item() == pytest.approx(recorded["grad_norm"][key] or 0.0, rel=1e-5), key
    arrays = golden(ARRAYS)
    for array in arrays.files:
        recorded_case, _, key = array.partition("|")
        if recorded_case in (case, case.replace("/i/", "/x/")) and key not in ignored:
            close(gradients[key], arrays[array], array)


@pytest.mark.parametrize("mode", ["lora_chat", "lora_base"])
def test_adapted_and_merged_hidden_states_equal_the_reference(golden, build, batch, mode):
    arrays = golden(ARRAYS)
    kinds = [kind for kind in ("eval", "merged") if f"{TAG}/x/{mode}/{kind}_hidden_image" in arrays.files]
    if not kinds:
        pytest.skip("not recorded in this set")
    inputs = batch("image")
    length = int(inputs["attention_mask"][0].sum())
    inputs = {"input_ids": inputs["input_ids"][:1, :length], "pixel_values": inputs["pixel_values"]}
    model = build(mode).eval()
    for kind in kinds:
        model = model.merge_and_unload() if kind == "merged" else model
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
        close(hidden, arrays[f"{TAG}/x/{mode}/{kind}_hidden_image"], kind)
