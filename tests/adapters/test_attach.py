"""An adapter on its base, in memory: merged into float weights."""

import pytest
import torch
from helpers import runs
from peft import PeftModel

from qwen_vl.adapters.attach import load_adapted
from qwen_vl.checkpoint import loading

IDS = torch.arange(20)[None]


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def test_an_adapter_is_merged_into_its_base_and_chats(make_adapter, make_checkpoint):
    folder, base = make_adapter("raw"), make_checkpoint("raw")
    model, tokenizer = load_adapted(folder)
    assert logits(model).equal(logits(PeftModel.from_pretrained(loading.load_model(base), folder).merge_and_unload()))
    assert not logits(model).equal(logits(loading.load_model(base)))
    assert model.generation_config.chat_format == "chatml" and tokenizer.image_span_tokens == 16
    assert load_adapted(folder, dtype=torch.bfloat16)[0].lm_head.weight.dtype == torch.bfloat16


def test_the_base_must_be_that_of_the_training(make_adapter, make_checkpoint, tmp_path):
    folder, other = make_adapter(), tmp_path / "other"
    weights = runs.weights(make_checkpoint())
    model = loading.load_model(make_checkpoint())
    model.load_state_dict(weights | {"lm_head.weight": weights["lm_head.weight"] + 1})
    model.save_pretrained(other)
    loading.load_tokenizer(make_checkpoint()).save_pretrained(other)
    with pytest.raises(ValueError, match="not the weights that"):
        load_adapted(folder, base=other)
    changed = load_adapted(folder, base=other, trust_base=True)[0]
    torch.testing.assert_close(changed.lm_head.weight, weights["lm_head.weight"] + 1)
