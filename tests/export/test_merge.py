"""Merging: a standalone model equal to base + adapter, or an error and no files."""

import json
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from helpers import runs
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from qwen_vl.adapters.attach import load_adapted
from qwen_vl.checkpoint import loading
from qwen_vl.cli import merge as merging
from qwen_vl.cli.run import run
from qwen_vl.export.merge import merge
from qwen_vl.export.verify import comparison
from qwen_vl.model import QWenLMHeadModel

# What a user does in a process that has never heard of this project.
ELSEWHERE = """
import importlib.util, json, sys
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
assert importlib.util.find_spec("qwen_vl") is None
inputs = torch.load("inputs.pt")
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        torch.save(model(**inputs).logits, folder.rpartition("/")[2] + ".logits.pt")
    query = tokenizer.from_list_format([{"image": "picture.png"}, {"text": "What?"}])
    torch.manual_seed(0)
    answer, history = model.chat(tokenizer, query, history=None, max_new_tokens=4)
    assert isinstance(answer, str) and history == [(query, answer)]
    assert processor(text=query, images=["picture.png"])["pixel_values"].shape == (1, 3, 64, 64)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):  # as the original README loads
        options = {"device_map": "auto", "trust_remote_code": True, precision: True}
        assert AutoModelForCausalLM.from_pretrained(folder, **options).dtype == dtype
"""


@pytest.fixture(scope="module")
def adapters(make_checkpoint, tmp_path_factory):
    """Return a function that gives the folder of an adapter trained with flags on a base of a chat format."""
    done = {}

    def adapter(chat_format, *flags):
        if (chat_format, flags) not in done:
            out = tmp_path_factory.mktemp("adapter") / "adapter"
            settings = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2}
            done[chat_format, flags] = runs.train(make_checkpoint(chat_format), out, "--use_lora", *flags, **settings)
        return done[chat_format, flags]

    return adapter


def inputs_for(folder):
    return comparison.image_prompt(loading.load_tokenizer(folder), loading.load_config(folder))


@pytest.mark.parametrize(
    ("chat_format", "flags"),
    [
        ("chatml", ()),
        ("raw", ()),
        ("chatml", ("--lora_bias", "all")),
        ("chatml", ("--lora_bias", "lora_only")),
        ("chatml", ("--modules_to_save", "attn_pool", "ln_f")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_the_merged_model_is_base_plus_adapter(make_checkpoint, adapters, tmp_path, chat_format, flags):
    base, adapter = make_checkpoint(chat_format), adapters(chat_format, *flags)
    difference = merge(adapter, output_dir=tmp_path / "merged").difference
    assert difference.largest < 1e-5
    inputs = inputs_for(base)
    adapted = comparison.logits(PeftModel.from_pretrained(loading.load_model(base), adapter), inputs)
    merged = comparison.logits(loading.load_model(tmp_path / "merged"), inputs)
    assert comparison.compare(adapted, merged).largest < 1e-5
    assert comparison.compare(adapted, comparison.logits(loading.load_model(base), inputs)).largest > 1e-2
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["chat_format"] == "chatml"


def test_exported_folders_stand_alone(make_checkpoint, adapters, tmp_path):
    """Check in another process, folder and environment without this project: equal logits, chat and processing."""
    full = runs.train(make_checkpoint(), tmp_path / "full", max_steps=1)
    inputs = inputs_for(full)
    torch.save(inputs, tmp_path / "inputs.pt")
    shutil.copy(runs.GOLDEN / "images" / "rgb.png", tmp_path / "picture.png")

    done = runs.python_elsewhere(tmp_path, runs.ROOT / "scripts" / "merge_and_unload.py", adapters("chatml"), "merged")
    assert done.stdout == "merged model in merged\n" and done.stderr.startswith("base + adapter and merged model agree")
    runs.python_elsewhere(tmp_path, "-c", ELSEWHERE, full, tmp_path / "merged")
    for folder in (full, tmp_path / "merged"):
        ours = comparison.logits(loading.load_model(folder), inputs)
        assert comparison.compare(ours, torch.load(tmp_path / f"{folder.name}.logits.pt")).largest < 1e-6


def test_an_adapter_of_a_base_model_chats_however_it_is_loaded(make_checkpoint, adapters, tmp_path):
    """Check that it uses ChatML, as in training: loaded as in docs/lora.md, by hand, merged by PEFT, and reloaded."""
    folder, base = adapters("raw"), make_checkpoint("raw")
    ours, tokenizer = load_adapted(folder)
    (sample,) = re.findall(
        r"^```python\n(.*?)^```$", (runs.ROOT / "docs/lora.md").read_text(), re.DOTALL | re.MULTILINE
    )
    names = {}
    exec(compile(sample.replace('"output/lora"', repr(str(folder))), "docs/lora.md", "exec"), names)
    assert isinstance(names["answer"], str) and names["history"] == [("Hello", names["answer"])]

    models = {
        "docs/lora.md": names["model"],
        "PeftModel": PeftModel.from_pretrained(QWenLMHeadModel.from_pretrained(base), folder),
        "transformers": AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
    }
    merged = PeftModel.from_pretrained(QWenLMHeadModel.from_pretrained(base), folder).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    models["merged"] = QWenLMHeadModel.from_pretrained(tmp_path / "merged")
    expected = ours.eval().chat(tokenizer, "Hi", do_sample=False, max_new_tokens=6)[0]
    for name, model in models.items():
        assert model.eval().chat(tokenizer, "Hi", do_sample=False, max_new_tokens=6)[0] == expected, name

    half = AutoPeftModelForCausalLM.from_pretrained(folder, trust_remote_code=True, device_map="auto", bf16=True)
    assert half.dtype == torch.bfloat16

    with pytest.raises(ValueError, match=r"base model.* set model.generation_config.chat_format = 'chatml'"):
        QWenLMHeadModel.from_pretrained(base).chat(tokenizer, "Hi")


def test_any_checkpoint_of_an_adapter_run_merges_from_anywhere(adapters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    merge(adapters("raw") / "checkpoint-2", output_dir="half")
    merge(adapters("raw") / "checkpoint-4", output_dir="last")
    merge(adapters("raw"), output_dir="final")
    assert runs.equal(runs.weights("last"), runs.weights("final"))
    assert not runs.equal(runs.weights("half"), runs.weights("final"))


def test_shards_and_dtype(make_checkpoint, adapters, tmp_path, capsys):
    """Check that the default dtype is that of the base, even if wte and lm_head were trained in float32."""
    adapter, base = adapters("raw"), tmp_path / "base"
    shutil.copytree(make_checkpoint("raw"), base)
    loading.load_model(base, dtype=torch.bfloat16).save_pretrained(base)
    out = tmp_path / "out"
    merging.main([str(adapter), str(out), "--base", str(base), "--trust_base", "--max_shard_size", "200KB"])
    assert len(list(out.glob("model-*.safetensors"))) > 2 and (out / "model.safetensors.index.json").is_file()
    assert {tensor.dtype for tensor in runs.weights(out).values()} == {torch.bfloat16}
    assert str(out) in capsys.readouterr().out
    merging.main([str(adapter), str(tmp_path / "wide"), "--dtype", "bfloat16"])
    assert {tensor.dtype for tensor in runs.weights(tmp_path / "wide").values()} == {torch.bfloat16}


def test_the_base_must_be_the_one_of_the_training(make_checkpoint, adapters, tmp_path):
    adapter = shutil.copytree(adapters("chatml"), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"not the weights that .* was trained on"):
        merge(adapter, output_dir=tmp_path / "out", base=make_trained(make_checkpoint(), tmp_path))
    moved = shutil.copytree(make_checkpoint(), tmp_path / "moved")
    merge(adapter, output_dir=tmp_path / "out", base=moved)
    base = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").write_text(json.dumps(base | {"name": str(tmp_path / "gone")}))
    with pytest.raises(FileNotFoundError, match="if it has moved, give it with --base"):
        merge(adapter, output_dir=tmp_path / "out2")
    (adapter / "base.json").unlink()
    with pytest.raises(ValueError, match="--trust_base"):
        merge(adapter, output_dir=tmp_path / "out2")
    merge(adapter, output_dir=tmp_path / "out2", trust_base=True)


def make_trained(folder, tmp_path):
    """Return a copy of a model folder with a small change of one weight."""
    copy = Path(shutil.copytree(folder, tmp_path / "other"))
    tensors = runs.weights(copy)
    tensors["lm_head.weight"] += 1e-3
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("arrange", "said"),
    [
        (lambda out, adapter: (out.mkdir(), (out / "mine.txt").write_text("x")), "exists and is not empty"),
        (lambda out, adapter: out.write_text("x"), "exists and is not empty"),
        (lambda out, adapter: (adapter / "adapter_config.json").unlink(), "no adapter_config.json there"),
        (lambda out, adapter: (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 9), "the adapter is damaged"),
        (lambda out, adapter: (adapter / "base.json").write_text("{"), "base.json: not JSON"),
    ],
    ids=["full folder", "file", "no adapter", "damaged adapter", "damaged base.json"],
)
def test_what_cannot_be_merged_is_one_error(adapters, tmp_path, capsys, arrange, said):
    adapter, out = Path(shutil.copytree(adapters("chatml"), tmp_path / "adapter")), tmp_path / "out"
    arrange(out, adapter)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        run(merging.main, [str(adapter), str(out)])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_nothing(adapters, tmp_path, capsys):
    """Limit files to 100 kB, which looks like a quota or a full disk to the writer."""
    adapters("chatml")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            run(merging.main, [str(adapters("chatml")), str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert ended.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "could not be written" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_merge_that_differs_is_not_kept(adapters, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "compare", lambda first, second: comparison.Difference(0.5, 0.1))
    with pytest.raises(ValueError, match=r"merged and base \+ adapter differ"):
        merge(adapters("chatml"), output_dir=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
