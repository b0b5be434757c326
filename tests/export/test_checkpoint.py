"""`qwen-vl checkpoint`: the content of a checkpoint, whether it is complete, and its exported model or adapter."""

import os

import pytest
import torch
from helpers import runs

from qwen_vl.cli import main
from qwen_vl.export import checkpoint


def show(capsys, folder):
    """Return (output, exit code) of `qwen-vl checkpoint show`."""
    code = 0
    try:
        main.main(["checkpoint", "show", str(folder)])
    except SystemExit as end:
        code = end.code
    return capsys.readouterr().out, code


def test_a_checkpoint_is_shown_and_exported(make_checkpoint, tmp_path, capsys):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "train_sampling_strategy": "sequential"}
    out = runs.train(make_checkpoint(), tmp_path / "out", **settings)
    text, code = show(capsys, out / "checkpoint-3")
    for words in (
        "complete  yes (every hash is right)",
        "holds     model\n",
        "step      3 of 6",
        "epoch     0.75",
        "data      6 of 8 samples of epoch 1 seen, seed 42",
        "engine    one process, processes: 1, batch of each: 2 x 1 accumulated",
    ):
        assert words in text, text
    assert code == 0
    for dtype in ("float32", "bfloat16"):
        main.main(["checkpoint", "export", str(out / "checkpoint-6"), str(tmp_path / dtype), "--dtype", dtype])
    assert runs.equal(runs.weights(tmp_path / "float32"), runs.weights(out))
    half = {name: tensor.bfloat16() for name, tensor in runs.weights(out).items()}
    assert runs.equal(runs.weights(tmp_path / "bfloat16"), half)
    left = {path.name for path in (tmp_path / "float32").iterdir()}
    assert not left & {"optimizer.pt", "trainer_state.json", "manifest.json", "rng_state.pth", "training_args.bin"}
    os.truncate(out / "checkpoint-6" / "optimizer.pt", 9)
    (out / "checkpoint-6" / "config.json").unlink()
    text, code = show(capsys, out)  # all of them, the newest first
    assert text.index("checkpoint-6") < text.index("checkpoint-3") and code == 1
    assert "no: config.json is missing; optimizer.pt has 9 bytes" in text
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        checkpoint.export(out / "checkpoint-6", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileExistsError):
        checkpoint.export(out / "checkpoint-3", out)
    with pytest.raises(FileNotFoundError, match="give a checkpoint-N folder"):
        checkpoint.show(tmp_path)


def test_an_adapter_is_exported(make_checkpoint, tmp_path, capsys):
    out = runs.train(make_checkpoint("raw"), tmp_path / "out", "--use_lora", save_strategy="steps", max_steps=2)
    main.main(["checkpoint", "export", str(out / "checkpoint-2"), str(tmp_path / "adapter")])
    assert runs.equal(runs.weights(tmp_path / "adapter"), runs.weights(out))
    assert capsys.readouterr().out.endswith(f"adapter in {tmp_path / 'adapter'}\n")
    for name in ("base.json", "adapter_config.json", "tokenizer_config.json", "qwen.tiktoken"):
        assert (tmp_path / "adapter" / name).read_bytes() == (out / "checkpoint-2" / name).read_bytes()


@pytest.mark.slow
def test_an_exported_model_loads_where_nobody_knows_this_package(make_checkpoint, tmp_path):
    out = runs.train(make_checkpoint(), tmp_path / "out", save_strategy="steps", max_steps=1)
    checkpoint.export(out / "checkpoint-1", tmp_path / "model")
    code = (
        "from transformers import AutoModelForCausalLM as A, AutoTokenizer as T; "
        f"T.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True); "
        f"print(A.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True).dtype)"
    )
    done = runs.python_elsewhere(tmp_path, "-c", code)
    assert done.stdout.strip().endswith(str(torch.float32)), done.stderr
