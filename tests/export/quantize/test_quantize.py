"""GPTQ export: the published layout, better than rounding, loadable, resumable; nf4."""

import json

import pytest
import torch
from helpers import quantized, runs
from safetensors.torch import load_file

from qwen_vl.checkpoint import int4_layout, loading
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.cli import quantize
from qwen_vl.cli.run import run
from qwen_vl.evaluation import quality
from qwen_vl.export.quantize import gptq_decoder
from qwen_vl.export.quantize import quantize as quantize_quantize
from qwen_vl.export.verify import comparison

GROUP = 32
# Readers of AutoGPTQ's format that have never heard of this project: transformers with optimum, and gptqmodel's own.
READERS = """
import importlib.util, sys
import torch
assert importlib.util.find_spec("qwen_vl") is None
from transformers import AutoModelForCausalLM, GPTQConfig
from gptqmodel import BACKEND, GPTQModel
folder, inputs = sys.argv[1], torch.load("inputs.pt")
inputs["pixel_values"] = inputs["pixel_values"].half()
options = {"trust_remote_code": True, "dtype": torch.float16}
config = GPTQConfig(bits=4, backend="gptq_torch")
models = {
    "transformers": AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, **options),
    "gptqmodel": GPTQModel.load(folder, backend=BACKEND.GPTQ_TORCH, device="cpu", **options).model,
}
for name, model in models.items():
    assert "TorchLinear" in type(model.transformer.h[0].mlp.w1).__name__
    with torch.no_grad():
        torch.save(model.eval()(**inputs).logits.float(), name + ".pt")
"""


@pytest.fixture(scope="module")
def int4(make_checkpoint, tmp_path_factory):
    """Return (folder of a tiny model that the command quantized, its output lines)."""
    out = tmp_path_factory.mktemp("int4") / "int4"
    data = runs.write_data(out.parent)
    words = [str(make_checkpoint()), str(out), "--calibration", str(data), "--image_folder", str(runs.GOLDEN)]
    quantize.main([*words, "--group_size", str(GROUP), "--max_shard_size", "300KB"])
    return out


def test_packing_is_the_published_layout():
    """Compare with the packer of the tests, which was written from the description of the layout."""
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    codes, zeros, scales, g_idx = int4_layout.round_to_nearest(weight, GROUP)
    ours, theirs = int4_layout.pack(codes, zeros, scales, g_idx), quantized.pack(codes, zeros, scales, g_idx)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[part], theirs[part]) for part in ours)
    expected = quantized.dequantized(codes, zeros, scales, g_idx).half().float()
    assert torch.equal(int4_layout.dequantize(ours), expected)
    assert torch.equal(int4_layout.dequantize(ours | {"qzeros": int4_layout.to_words(zeros)}, version=2), expected)


def test_the_export_has_the_published_names_shapes_and_settings(int4, make_int4_checkpoint):
    ours, published = runs.weights(int4), load_file(make_int4_checkpoint() / "model.safetensors")
    outline = {name: (tensor.dtype, tensor.shape) for name, tensor in published.items()}
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in ours.items()} == outline
    assert (int4 / "model.safetensors.index.json").is_file()
    settings = [json.loads((folder / "config.json").read_text()) for folder in (int4, make_int4_checkpoint())]
    assert settings[0]["quantization_config"] == settings[1]["quantization_config"]
    assert settings[0]["quantization_config"] == json.loads((int4 / "quantize_config.json").read_text())
    assert settings[0]["dtype"] == "float16"


def test_the_export_loads_and_is_near_the_float_model(int4, make_checkpoint, make_int4_checkpoint):
    inputs = comparison.image_prompt(loading.load_tokenizer(int4), loading.load_config(int4))
    before = comparison.logits(loading.load_model(make_checkpoint()), inputs)
    loaded = comparison.logits(loading.load_model(int4), inputs)
    streamed = comparison.logits(DiskModel(int4).stream(dtype=torch.float32), inputs)
    assert comparison.compare(loaded, streamed).largest < 1e-4
    rounded = comparison.logits(loading.load_model(make_int4_checkpoint()), inputs)
    assert comparison.compare(before, loaded).mean < comparison.compare(before, rounded).mean


@pytest.mark.slow
def test_readers_of_others_load_the_export(int4, tmp_path):
    """Check the logits in a process without this project; a zero point off by one would move each weight by a step."""
    inputs = comparison.image_prompt(loading.load_tokenizer(int4), loading.load_config(int4))
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    runs.python_elsewhere(tmp_path, "-c", READERS, int4)
    ours = comparison.logits(loading.load_model(int4, dtype=torch.float32), inputs)
    for name in ("transformers", "gptqmodel"):
        difference = comparison.compare(ours, torch.load(tmp_path / f"{name}.pt"))
        print(name, difference)
        assert difference.largest < 1e-2, name


def test_an_interrupted_run_resumes_from_the_finished_blocks(int4, make_checkpoint, tmp_path, monkeypatch, capsys):
    data, out = runs.write_data(tmp_path), tmp_path / "out"
    words = [str(make_checkpoint()), str(out), "--calibration", str(data), "--image_folder", str(runs.GOLDEN)]
    words += ["--group_size", str(GROUP)]
    whole, done = gptq_decoder.quantize_block, []

    def once(*args, **kwargs):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return whole(*args, **kwargs)

    monkeypatch.setattr(gptq_decoder, "quantize_block", once)
    with pytest.raises(KeyboardInterrupt):
        quantize.main(words)
    assert not out.exists()
    done.clear()
    with pytest.raises(SystemExit) as ended:
        run(quantize.main, [*words, "--damp", "0.1"])
    assert ended.value.code == 1 and "begun with another damp" in capsys.readouterr().err
    quantize.main(words)  # one block may be quantized, and one is all that is left
    assert "block 1/2: done before" in capsys.readouterr().err
    assert runs.equal(runs.weights(out), runs.weights(int4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "out"]


def test_nf4_and_the_quality_report(make_checkpoint, tmp_path, capsys):
    data, out = runs.write_data(tmp_path), tmp_path / "nf4"
    words = ["--method", "nf4", "--evaluate", str(data), "--max_evaluated", "4", "--image_folder", str(runs.GOLDEN)]
    quantize.main([str(make_checkpoint()), str(out), *words])
    said = capsys.readouterr().out
    assert "| perplexity of the recorded answers |" in said and "of 4 (" in said
    loaded = loading.load_model(out)
    assert type(loaded.transformer.h[0].mlp.w1).__name__ == "Linear4bit"
    assert type(loaded.lm_head) is torch.nn.Linear
    assert type(loaded.transformer.visual.attn_pool.kv_proj) is torch.nn.Linear


def test_perplexity_is_that_of_all_targets(make_checkpoint, tmp_path):
    folder = make_checkpoint()
    samples = quality.samples_of(
        runs.write_data(tmp_path), loading.load_tokenizer(folder), 64, image_folder=runs.GOLDEN, limit=3
    )
    assert len(samples) == 3
    model, losses = loading.load_model(folder).eval(), []
    for sample in samples:
        logits = model(sample["input_ids"], pixel_values=sample.get("pixel_values")).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, sample["labels"][0, 1:], reduction="none"))
    kept = torch.cat(losses)[torch.cat([sample["labels"][0, 1:] for sample in samples]) != -100]
    assert quality.perplexity(model, samples) == pytest.approx(kept.mean().exp().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--bits", "3"], "--bits 3: only 4 bits"),
        ([], "--calibration: GPTQ needs conversations"),
        (["--calibration", "text.json"], "no images in it"),
        (["--calibration", "data.json"], "no groups of 128: give a --group_size that divides 64"),
    ],
)
def test_what_cannot_be_quantized_is_one_error(make_checkpoint, tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    runs.write_data(tmp_path, [(None, "1+1?", "2")]).rename("text.json")
    runs.write_data(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(quantize.main, [str(make_checkpoint()), "out", "--image_folder", str(runs.GOLDEN), *flags])
    assert ended.value.code == 1 and said in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "text.json"]


def test_neither_adapters_nor_quantized_models_are_quantized(make_int4_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="is quantized already"):
        quantize_quantize.open_float(make_int4_checkpoint())
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge it first"):
        quantize_quantize.open_float(tmp_path)
