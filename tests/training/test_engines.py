"""DDP, DeepSpeed and FSDP with two CPU processes: the losses and the saved weights of one process."""

import json
import os
import subprocess
import sys

import pytest
import runs

DRIVER = runs.ROOT / "tests" / "engine_driver.py"
ENGINES = {
    "ddp": (),
    **{path.stem: ("--deepspeed", str(path)) for path in sorted((runs.ROOT / "configs" / "deepspeed").glob("*.json"))},
    **{
        f"fsdp_{path.stem}": ("--fsdp", "--fsdp_config", str(path))
        for path in sorted((runs.ROOT / "configs" / "fsdp").glob("*.json"))
    },
}
MODES = {  # chat format of the model, and flags; the norm of the gradients is cut by all of them
    "full": ("chatml", ()),
    "full_vit": ("chatml", ("--fix_vit", "False")),
    "lora": ("chatml", ("--use_lora", "--lora_dropout", "0")),
    "lora_base": ("raw", ("--use_lora", "--lora_dropout", "0")),
}
USUAL = {"zero3": ("full", "lora_base"), "fsdp_full_state_dict": ("full", "lora_base")}  # of the default test run
EVERY = [pytest.param(engine, tuple(MODES), marks=pytest.mark.slow) for engine in ENGINES]


@pytest.fixture(scope="module")
def alone(make_checkpoint, tmp_path_factory):
    """A function that gives the output folder of a mode's run in one process, made once."""
    made = {}

    def train(mode):
        if mode not in made:
            chat_format, flags = MODES[mode]
            folder = tmp_path_factory.mktemp(mode) / "out"
            made[mode] = runs.train(make_checkpoint(chat_format), folder, *flags, per_device_train_batch_size=4)
        return made[mode]

    return train


def launch(commands, folder, processes=2, timeout=400):
    """The finished torchrun of several runs of finetune.main, one after another in the same processes."""
    plan = folder / "runs.json"
    plan.write_text(json.dumps(commands), encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [sys.executable, *torchrun, str(DRIVER), str(plan)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(runs.ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize(("engine", "modes"), [*USUAL.items(), *EVERY])
def test_an_engine_equals_one_process(make_checkpoint, tmp_path, alone, engine, modes):
    """Two processes of 2 samples a step against one of 4, in which some batches hold no picture."""
    commands = []
    for mode in modes:
        chat_format, flags = MODES[mode]
        commands.append(runs.command(make_checkpoint(chat_format), tmp_path / mode, *flags, *ENGINES[engine]))
    done = launch(commands, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    for mode in modes:
        assert runs.losses(tmp_path / mode) == pytest.approx(runs.losses(alone(mode)), rel=1e-5), mode
        difference = runs.largest_difference(runs.weights(alone(mode)), runs.weights(tmp_path / mode))
        assert difference < 1e-5, mode
