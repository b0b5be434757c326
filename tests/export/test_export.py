"""`qwen-vl export` of a checkpoint of a run."""

import pytest
from helpers import runs

from qwen_vl.cli import export
from qwen_vl.cli.run import run


def test_a_checkpoint_of_a_run_is_exported_without_what_belongs_to_training(make_checkpoint, tmp_path, capsys):
    full = runs.train(make_checkpoint(), tmp_path / "full", save_strategy="steps", save_steps=2, max_steps=2)
    export.main([str(full / "checkpoint-2"), str(tmp_path / "out"), "--max_shard_size", "300KB"])
    assert runs.equal(runs.weights(tmp_path / "out"), runs.weights(full))
    assert not list((tmp_path / "out").glob("*optimizer*")) + list((tmp_path / "out").glob("trainer_state*"))
    assert "| sha" not in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SystemExit):
        run(export.main, [str(full), str(tmp_path / "no"), "--onto", "x"])
    assert "--onto: for an adapter" in capsys.readouterr().err
