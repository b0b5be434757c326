"""Q-LoRA under DDP, DeepSpeed and FSDP with two CPU processes: the losses and the adapter of one process."""

import pytest
from helpers import runs
from test_engines import ENGINES, launch

KINDS = {"gptq": (), "nf4": (), "int8": ("--quantization", "int8")}
WORK = ("ddp", "zero2")  # ZeRO-3 and FSDP are refused: test_lora_targets.py


def command(base, folder, *flags, **settings):
    """The command line of a short run with evaluation, whose result goes to FOLDER/out."""
    folder.mkdir()
    data = runs.write_data(folder)
    evaluation = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 4, "eval_data_path": data}
    settings = {"max_steps": 6, "data_path": data, "learning_rate": 1e-2, **evaluation, **settings}
    return runs.command(base, folder / "out", "--q_lora", "--lora_dropout", "0", *flags, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("engine", WORK)
def test_two_processes_equal_one(make_checkpoint, make_int4_checkpoint, tmp_path, engine):
    """Two processes of 2 samples a step against one of 4; kind after kind in the same processes."""
    bases = {kind: make_int4_checkpoint() if kind == "gptq" else make_checkpoint() for kind in KINDS}
    done = launch([command(bases[k], tmp_path / k, *KINDS[k], *ENGINES[engine]) for k in KINDS], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    for kind in KINDS:
        one = runs.run(command(bases[kind], tmp_path / f"{kind} alone", *KINDS[kind], per_device_train_batch_size=4))
        out = tmp_path / kind / "out"
        assert runs.losses(out) == pytest.approx(runs.losses(one), rel=1e-4), kind
        assert runs.losses(out, "eval_loss") == pytest.approx(runs.losses(one, "eval_loss"), rel=1e-4), kind
        assert runs.largest_difference(runs.weights(one), runs.weights(out)) < 1e-4, kind  # of weights up to 0.15
