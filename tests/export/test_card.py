"""Model cards: origin, settings and measurements."""

import hashlib
import json

import torch
from helpers import runs

from qwen_vl.cli import export


def test_cards_say_what_a_model_was_made_from(make_checkpoint, tmp_path, capsys):
    data = runs.write_data(tmp_path)
    full = runs.train(make_checkpoint(), tmp_path / "full", data_path=data, learning_rate=1e-4)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    record = json.loads((full / "run.json").read_text())
    assert record["data"] == [{"name": "data.json", "sha256": digest}] and record["metrics"]["steps"] == 4
    assert record["settings"]["learning_rate"] == 1e-4 and "output_dir" not in record["settings"]
    export.main([str(full), str(tmp_path / "out"), "--dtype", "bfloat16"])
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (digest, "learning_rate | 0.0001", "license_name: tongyi-qianwen", "| steps | 4 |", "in bfloat16"):
        assert part in card
    assert str(tmp_path) not in card
    assert {tensor.dtype for tensor in runs.weights(tmp_path / "out").values()} == {torch.bfloat16}
    lora = runs.train(tmp_path / "out", tmp_path / "lora", "--use_lora", data_path=data, bf16=True)
    export.main([str(lora), str(tmp_path / "merged")])
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "base_model: out" in card and "The adapter was merged into `out`." in card and "lora_r" not in card
    assert (tmp_path / "merged" / "run.json").is_file()
