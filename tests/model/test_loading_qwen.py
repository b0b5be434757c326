"""Arguments of the original loader: `fp16=True` and the like choose the dtype in every call that takes them."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qwen_vl.model import QWenConfig, QWenLMHeadModel

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture
def checkpoint(make_checkpoint, tmp_path):
    """Return a copy of the tiny checkpoint, stored in float32, whose config.json says bf16."""
    folder = shutil.copytree(make_checkpoint(), tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bf16": True}))
    return folder


def dtypes(model):
    """Return the dtypes of all weights and of the config."""
    return {parameter.dtype for parameter in model.parameters()} | {model.config.dtype}


@pytest.mark.parametrize("loader", [QWenLMHeadModel, AutoModelForCausalLM], ids=lambda loader: loader.__name__)
@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ({}, SINGLE),  # the fields in config.json are kept without effect
        ({"bf16": True, "device_map": "auto"}, BRAIN),
        ({"fp16": True}, HALF),
        ({"fp16": True, "bf16": False, "fp32": None, "dtype": "auto"}, HALF),
        ({"bf16": False, "fp16": None}, SINGLE),
        ({"fp32": True, "use_flash_attn": False}, SINGLE),
        ({"fp16": True, "dtype": BRAIN}, BRAIN),
        ({"bf16": True, "torch_dtype": "float16"}, HALF),
        ({"use_flash_attn": True, "fp16": True}, HALF),
        ({"resume_download": True, "trust_remote_code": True, "fp16": True}, HALF),
    ],
    ids=str,
)
def test_a_precision_is_a_dtype_and_a_dtype_goes_first(checkpoint, loader, arguments, dtype):
    assert dtypes(loader.from_pretrained(checkpoint, **arguments)) == {dtype}
    config = QWenConfig.from_pretrained(checkpoint)
    before = config.to_dict()
    model = loader.from_pretrained(checkpoint, config=config, **arguments)
    assert dtypes(model) == {dtype} and config.to_dict() == before, "also beside a config, which is not changed"


def test_a_config_carries_the_precision_on(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint, fp16=True)
    assert dtypes(QWenLMHeadModel.from_pretrained(checkpoint, config=config)) == {HALF}
    assert dtypes(AutoModelForCausalLM.from_config(config)) == {HALF}
    assert dtypes(AutoModelForCausalLM.from_config(config, bf16=True)) == {BRAIN}
    assert dtypes(AutoModelForCausalLM.from_config(config, bf16=True, dtype=SINGLE)) == {SINGLE}


def test_the_fields_say_what_was_asked_for_and_round_trip(checkpoint, tmp_path):
    for arguments, fields in (
        ({}, (True, False, False)),
        ({"fp16": True}, (False, True, False)),
        ({"bf16": False}, (False, False, False)),
    ):
        QWenLMHeadModel.from_pretrained(checkpoint, **arguments).save_pretrained(tmp_path / "saved")
        saved = json.loads((tmp_path / "saved" / "config.json").read_text())
        assert (saved["bf16"], saved["fp16"], saved["fp32"]) == fields
        assert saved["dtype"] == ("float16" if arguments.get("fp16") else "float32")


@pytest.mark.parametrize("loader", [QWenLMHeadModel, AutoModelForCausalLM], ids=lambda loader: loader.__name__)
def test_precisions_that_contradict_each_other_are_refused(checkpoint, loader):
    config = QWenConfig.from_pretrained(checkpoint)
    for options in ({}, {"config": config}, {"dtype": HALF}):
        with pytest.raises(ValueError, match="bf16=True and fp16=True: weights have one dtype; pass one"):
            loader.from_pretrained(checkpoint, bf16=True, fp16=True, **options)
    with pytest.raises(ValueError, match="fp16='auto': use True or False"):
        loader.from_pretrained(checkpoint, fp16="auto")
