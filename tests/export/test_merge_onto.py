"""Adapters that were trained on quantized weights, merged into other weights."""

import json

import pytest
from helpers import runs
from peft import LoraConfig, PeftModel, get_peft_model

from qwen_vl.checkpoint import loading
from qwen_vl.cli import merge
from qwen_vl.cli.run import run
from qwen_vl.export import merge as export_merge
from qwen_vl.export.verify import comparison


def adapter_on(base, folder, **recorded):
    """Write an adapter with random weights, like one trained on `base`, and return its folder."""
    config = LoraConfig(r=4, target_modules=["c_attn", "w1"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(loading.load_model(base), config).save_pretrained(folder)
    record = {"name": str(base), "fingerprint": loading.fingerprint(base), **recorded}
    (folder / "base.json").write_text(json.dumps(record))
    return folder


def test_an_adapter_on_int4_goes_onto_the_float_model_or_into_dequantized_weights(
    make_checkpoint, make_int4_checkpoint, tmp_path, capsys
):
    adapter = adapter_on(make_int4_checkpoint(), tmp_path / "adapter")
    with pytest.raises(SystemExit):
        run(merge.main, [str(adapter), str(tmp_path / "no")])
    said = capsys.readouterr().err
    assert "--onto FLOAT_MODEL" in said and "--dequantize" in said
    data = runs.write_data(tmp_path)
    prompts = ["--prompts", str(data), "--image_folder", str(runs.GOLDEN)]
    merge.main([str(adapter), str(tmp_path / "onto"), "--onto", str(make_checkpoint()), *prompts])
    said = capsys.readouterr().out
    assert said.startswith("what the change of base does: largest logit difference")
    assert float(said.split("difference ")[1].split(",")[0]) > 1e-3  # rounding to 4 bits
    card = (tmp_path / "onto" / "README.md").read_text()
    assert "It was trained on a quantized base" in card and "trained base + adapter against merged" in card
    merge.main([str(adapter), str(tmp_path / "deq"), "--dequantize", "--dtype", "float32"])
    assert "change of base" not in capsys.readouterr().out
    inputs = comparison.image_prompt(loading.load_tokenizer(tmp_path / "deq"), loading.load_config(tmp_path / "deq"))
    adapted = comparison.logits(PeftModel.from_pretrained(loading.load_model(make_int4_checkpoint()), adapter), inputs)
    assert comparison.compare(adapted, comparison.logits(loading.load_model(tmp_path / "deq"), inputs)).largest < 1e-4
    config = json.loads((tmp_path / "deq" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"


def test_an_adapter_on_weights_that_loading_quantized(make_checkpoint, tmp_path):
    adapter = adapter_on(make_checkpoint(), tmp_path / "adapter", quantization="nf4")
    done = export_merge.merge(adapter, output_dir=tmp_path / "merged")
    assert done.difference.largest < 1e-5 < 1e-3 < done.change_of_base.largest


@pytest.mark.parametrize(
    ("quantized", "flags", "said"),
    [
        (True, ["--onto", "INT4"], "is quantized, too"),
        (True, ["--onto", "FLOAT", "--dequantize"], "give one of them"),
        (False, ["--onto", "FLOAT"], "is a float model: leave --onto"),
    ],
)
def test_a_base_that_does_not_go_is_one_error(
    make_checkpoint, make_int4_checkpoint, tmp_path, capsys, quantized, flags, said
):
    names = {"INT4": str(make_int4_checkpoint()), "FLOAT": str(make_checkpoint())}
    adapter = adapter_on(names["INT4" if quantized else "FLOAT"], tmp_path / "adapter")
    with pytest.raises(SystemExit) as ended:
        run(merge.main, [str(adapter), str(tmp_path / "out"), *[names.get(flag, flag) for flag in flags]])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "out").exists()
