"""An adapter folder as a value: what it says, and clear errors for damage. One module knows its files."""

import json
import re

import pytest
from helpers import runs

from qwen_vl.adapters import adapter as adapters
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint import files, loading
from qwen_vl.checkpoint import folder as folders
from qwen_vl.checkpoint.files import ADAPTER_BASE, ADAPTER_CONFIG
from qwen_vl.export.merge import merge


@pytest.fixture
def adapter_dir(make_adapter):
    return make_adapter(quantization="nf4")


def test_an_opened_adapter_says_what_it_is(adapter_dir, make_checkpoint):
    adapter = Adapter.open(adapter_dir)
    assert Adapter.open(adapter) is adapter and Adapter.open(str(adapter_dir)) == adapter
    assert adapter.config.r == 4 and adapter.start is False and adapter.quantization == "nf4"
    base = adapter.find_base()
    assert str(base) == str(make_checkpoint())
    assert {shape[0] for name, shape in adapter.shapes().items() if "lora_A" in name} == {4}
    assert adapter.load_tokenizer(base).vocab_size == loading.load_tokenizer(make_checkpoint()).vocab_size
    (adapter_dir / "base.json").unlink()
    alone = Adapter.open(adapter_dir)
    assert alone.base is None and alone.quantization is None
    with pytest.raises(ValueError, match="--trust_base"):
        alone.find_base(make_checkpoint())
    assert str(alone.find_base(make_checkpoint(), trust=True)) == str(make_checkpoint())


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "adapter_config.json: not JSON"), ("[]", "not an object"), ('{"peft_type": "NO"}', "describes no adapter")],
)
def test_damaged_settings_are_one_clear_error(adapter_dir, content, said):
    (adapter_dir / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=said) as refused:
        Adapter.open(adapter_dir)
    assert str(adapter_dir) in str(refused.value)


def test_a_merge_opens_each_folder_once(adapter_dir, tmp_path, monkeypatch):
    """Count reads: base, adapter and merged model are opened once and passed on."""
    opened = []
    really_open, really_read = folders.Weights, files.read_json
    monkeypatch.setattr(folders, "Weights", lambda path, *rest: opened.append(str(path)) or really_open(path, *rest))

    def read_json(path, name, *rest):
        if name in (ADAPTER_CONFIG, ADAPTER_BASE):
            opened.append(f"{path}/{name}")
        return really_read(path, name, *rest)

    for module in (files, loading):
        monkeypatch.setattr(module, "read_json", read_json)
    base = Adapter.open(adapter_dir).base["name"]
    record = json.loads((adapter_dir / "base.json").read_text())
    (adapter_dir / "base.json").write_text(json.dumps(record | {"quantization": None}))
    opened.clear()
    merge(adapter_dir, output_dir=tmp_path / "merged")
    wanted = [f"{adapter_dir}/{ADAPTER_CONFIG}", f"{adapter_dir}/{ADAPTER_BASE}"]
    assert sorted(opened) == sorted([*wanted, base, str(tmp_path / ".merged.partial")])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (ADAPTER_CONFIG, "checkpoint/files.py"),
        (ADAPTER_BASE, "checkpoint/files.py"),
        (adapters.WEIGHTS_FILE, "adapters/adapter.py"),
    ],
)
def test_one_place_spells_each_file_of_an_adapter(name, place):
    package, spelled = runs.ROOT / "qwen_vl", re.compile(rf'"[^"\n]*\b{re.escape(name)}"')
    texts = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert [file for file, text in texts.items() for _ in spelled.findall(text)] == [place]
