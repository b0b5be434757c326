"""--compile_layers changes how steps are computed, not what they compute, and says what it does not go with."""

import shutil

import pytest
import runs

COMPILED = ("--compile_layers", "True")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--packing", "auto"), ("--use_lora", "--lora_dropout", "0")])
def test_compiled_layers_train_as_others(make_checkpoint, tmp_path, flags):
    flags = (*flags, "--gradient_checkpointing", "True")
    plain = runs.train(make_checkpoint(), tmp_path / "plain", *flags)
    compiled = runs.train(make_checkpoint(), tmp_path / "compiled", *flags, *COMPILED)
    assert runs.losses(compiled) == pytest.approx(runs.losses(plain), rel=1e-5)
    assert runs.largest_difference(runs.weights(plain), runs.weights(compiled)) < 1e-4
    assert {file.name for file in compiled.iterdir()} == {file.name for file in plain.iterdir()}


def test_layers_are_compiled_only_where_asked(make_checkpoint, tmp_path, monkeypatch):
    kinds = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda module, **options: kinds.append(type(module).__name__))
    runs.train(make_checkpoint(), tmp_path / "plain", max_steps=1)
    assert not kinds
    runs.train(make_checkpoint(), tmp_path / "out", *COMPILED, max_steps=1)
    assert sorted(kinds) == ["QWenMLP"] * 2 + ["RMSNorm"] * 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--torch_compile", "True"), "use --compile_layers True instead"),
        ((*COMPILED, "--q_lora"), "leave it out with --q_lora"),
        ((*COMPILED, "--deepspeed", "configs/deepspeed/zero2.json"), "hook into each layer"),
    ],
)
def test_what_compilation_does_not_go_with(make_checkpoint, tmp_path, capsys, monkeypatch, flags, said):
    monkeypatch.chdir(runs.ROOT)
    with pytest.raises(SystemExit):
        runs.train(make_checkpoint(), tmp_path / "out", *flags)
    assert said in capsys.readouterr().err


def test_a_missing_compiler_is_named(make_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit):
        runs.train(make_checkpoint(), tmp_path / "out", *COMPILED)
    assert "needs a C++ compiler" in capsys.readouterr().err
