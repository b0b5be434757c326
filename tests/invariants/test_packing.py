"""Packed rows: they train exactly like their samples one by one, and they are full."""

import pytest
import torch
from helpers import runs
from torch.utils.data import DataLoader

from qwen_vl.adapters import build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading
from qwen_vl.data.chatml import IGNORE_INDEX, EncodeOptions
from qwen_vl.data.collator import HOST_KEYS, ConversationCollator
from qwen_vl.data.dataset import ConversationDataset
from qwen_vl.data.packing import PackedDataset, PackOptions
from qwen_vl.training import tuning


def talk(name, *turns):
    roles = ["user", "assistant"] * len(turns)
    pairs = zip(roles, turns, strict=False)
    return {"id": name, "conversations": [{"from": role, "value": value} for role, value in pairs]}


IMAGE, OTHER = "Picture 1: <img>images/rgb.png</img>\n", "Picture 2: <img>images/photo.jpg</img>\n"
KINDS = {
    "text": [talk("a", "hi", "hello"), talk("b", "1 + 1?", "2", "sure?", "yes"), talk("c", "name", "Qwen-VL")],
    "images": [talk("a", IMAGE + "what?", "a square"), talk("b", "hi", "hello"), talk("c", IMAGE, "red")],
    "several": [
        talk("a", IMAGE + OTHER + "same?", "no"),
        talk("b", IMAGE, "one", OTHER, "two"),
        talk("c", "a", "b"),
    ],
}


def gradients(model, batches):
    """Return loss over all targets of the batches together, and the gradient of every parameter that has one."""
    model.zero_grad()
    total = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
    loss = 0.0
    for batch in batches:
        inputs = {key: value for key, value in batch.items() if key not in HOST_KEYS}
        part = model(**inputs, num_items_in_batch=total).loss
        part.backward()
        loss += part.item()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_packed_equals_unpacked(method, kind, attention, make_checkpoint, in_golden_dir):
    folder = make_checkpoint()
    tokenizer = loading.load_tokenizer(folder)
    torch.manual_seed(0)
    model = loading.load_model(folder, attn_implementation=attention).train()
    if method == "full":
        tuning.freeze_for_full(model, fix_vit=False)
    else:
        targets = ["c_attn", "attn.c_proj", "w1", "w2"]
        model = build.add_adapters(
            model, LoraOptions(r=4, alpha=8, dropout=0.0, targets=targets, modules_to_save=["wte", "lm_head"])
        )
        for name, parameter in model.named_parameters():  # a fresh adapter has a zero half and teaches nothing
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    dataset = ConversationDataset(KINDS[kind], tokenizer, EncodeOptions(512))
    collator = ConversationCollator(tokenizer, model.config.visual["image_size"])
    alone_loss, alone = gradients(model, [collator([sample]) for sample in dataset])
    packed = PackedDataset(dataset, PackOptions(512), seed=3)
    packed_loss, together = gradients(model, [collator([packed[i] for i in range(len(packed))])])
    assert abs(packed_loss - alone_loss) < 1e-5 * abs(alone_loss)
    assert alone and together.keys() == alone.keys()
    drift = []
    for name, expected in alone.items():
        assert (together[name] - expected).abs().max() <= 1e-5 * expected.abs().max(), name
        drift.append((together[name] - expected).sum() / expected.abs().sum().clamp(min=1e-12))
    assert abs(torch.stack(drift).mean()) < 1e-6


def test_rows_come_through_data_workers(make_checkpoint, in_golden_dir):
    tokenizer = loading.load_tokenizer(make_checkpoint())
    dataset = PackedDataset(ConversationDataset(KINDS["several"], tokenizer, EncodeOptions(512)), PackOptions(512))
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=ConversationCollator(tokenizer, 64))
    (batch,) = loader
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape == (1, sum(dataset.lengths))
    assert sorted(batch["ids"]) == ["a", "b", "c"] and len(batch["image_index"]) == 4 > len(batch["pixel_values"])
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) == 3 and batch["labels"][0, starts].tolist() == [IGNORE_INDEX] * 3


@pytest.mark.parametrize("flags", [("--fix_vit", "False"), ("--use_lora", "--lora_dropout", "0")], ids=["full", "lora"])
def test_a_packed_run_equals_an_unpacked_one(make_checkpoint, tmp_path, flags, caplog):
    """Compare three epochs of one step each, since all samples fit one row."""
    settings = {"max_steps": 3, "model_max_length": 1024}
    plain = runs.train(make_checkpoint(), tmp_path / "plain", *flags, per_device_train_batch_size=8, **settings)
    with caplog.at_level("INFO", logger="qwen_vl"):
        packed = runs.train(
            make_checkpoint(),
            tmp_path / "packed",
            *flags,
            "--packing",
            "auto",
            per_device_train_batch_size=1,
            **settings,
        )
    assert "packed 8 samples into 1 rows" in caplog.text and "% full" in caplog.text
    assert runs.losses(packed) == pytest.approx(runs.losses(plain), rel=1e-5)


def test_packing_refuses_what_does_not_go_with_it(tmp_path, capsys):
    words = ["--data_path", "x.json", "--output_dir", str(tmp_path), "--packing", "auto"]
    with pytest.raises(SystemExit):
        runs.finetune.main([*words, "--group_by_length"])
    shown = capsys.readouterr().err
    assert "--group_by_length is for samples that are padded" in shown
