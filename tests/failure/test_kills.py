"""kill -9 at random points, also during a checkpoint; the same command then gives the result of an undisturbed run."""

import json
import random
import time

import pytest
from helpers import runs

from qwen_vl.export import checkpoint, parts

ENGINES = {
    "one": (),
    "ddp": (),
    "zero2": ("--deepspeed", str(runs.ROOT / "configs/deepspeed/zero2.json")),
    "zero3": ("--deepspeed", str(runs.ROOT / "configs/deepspeed/zero3.json")),
    "fsdp_full": ("--fsdp", "--fsdp_config", str(runs.ROOT / "configs/fsdp/full_state_dict.json")),
    "fsdp_sharded": ("--fsdp", "--fsdp_config", str(runs.ROOT / "configs/fsdp/sharded_state_dict.json")),
}
MODES = {
    "full": (),
    "vit": ("--fix_vit", "False", "--logging_steps", "2"),
    "lora": ("--use_lora", "--lora_dropout", "0.2"),
    "packed": ("--use_lora", "--lora_dropout", "0.2", "--packing", "auto", "--model_max_length", "120"),
    "stream": ("--use_lora", "--streaming", "--dataloader_num_workers", "1"),
    "accumulated": ("--use_lora", "--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "1"),
}
NUM_TRIALS = 2  # of each engine and mode in the slow suite
DEFAULT = [("one", "full", 1), ("one", "stream", 2)]  # test_faults.py has some of two processes


class Trials:
    """The killed runs of an engine and mode, and their undisturbed run."""

    def __init__(self, warm, model, folder, engine, mode):
        self.warm, self.folder, self.ranks = warm, folder, 1 if engine == "one" else 2
        data = runs.write_data(folder, runs.TEXTS)
        if mode == "stream":
            data = folder / "data.jsonl"
            records = json.loads((folder / "data.json").read_text())
            data.write_text("".join(json.dumps(record) + "\n" for record in records))
        settings = {"data_path": data, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
        settings |= {"per_device_train_batch_size": 3 - self.ranks}
        flags = (*MODES[mode], *ENGINES[engine], "--resume", "auto")
        self.command = lambda name: runs.command(model, folder / name, *flags, **settings)
        self.is_exact = engine == "one"
        began = time.monotonic()
        faults = {str(rank): {"count": str(folder / f"events.{rank}")} for rank in range(self.ranks)}
        assert self.run("whole", faults=faults) == [0] * self.ranks, self.warm.said
        self.seconds = time.monotonic() - began
        self.events = [int((folder / f"events.{rank}").read_text()) for rank in range(self.ranks)]

    def run(self, name, **faults):
        return self.warm.run(self.command(name), ranks=self.ranks, distributed=self.ranks > 1, **faults)

    def survive(self, seed):
        """Kill a run at a random place once or twice, run it to its end, compare it; return the kills."""
        chance, name, done = random.Random(seed), f"killed-{seed}", []
        for _ in range(chance.choice([1, 1, 2])):
            rank = chance.randrange(self.ranks)
            fault = {"event": chance.randint(1, self.events[rank])}
            if chance.random() < 0.3:
                fault = {"step": chance.randrange(6), "after": chance.random() * 0.2}
            codes = self.run(name, faults={str(rank): fault})
            done.append(f"{fault} in rank {rank}: {codes}, {self.checkpoints(name)}")
            assert set(codes) <= {-9, 0, 1}, (seed, done, self.warm.said)  # 1: of a process that lost the other one
        codes = self.run(name)
        assert codes == [0] * self.ranks, (seed, done, self.warm.said)
        done.append("resuming from" in self.warm.said[0])
        self.compare(self.folder / name, (seed, done))
        return done

    def checkpoints(self, name):
        return sorted(path.name for path in (self.folder / name).glob("checkpoint-*"))

    def compare(self, out, what):
        whole = self.folder / "whole"
        if self.is_exact:
            assert runs.losses(out) == runs.losses(whole), what
            assert runs.equal(runs.weights(out), runs.weights(whole)), what
        assert runs.losses(out) == pytest.approx(runs.losses(whole), rel=1e-5), what
        assert runs.largest_difference(runs.weights(out), runs.weights(whole)) < 1e-5, what
        assert not list(out.glob(".saving")) and len(list(out.glob("checkpoint-*"))) == 2, what


def modes_of(engine):
    return [mode for mode in MODES if engine in ("one", "ddp") or mode in ("full", "lora")]


SLOW = [
    pytest.param(engine, mode, 1000 * number, marks=pytest.mark.slow)
    for number, (engine, mode) in enumerate((engine, mode) for engine in ENGINES for mode in modes_of(engine))
]


@pytest.mark.parametrize(("engine", "mode", "seed"), [*DEFAULT, *SLOW])
def test_a_killed_run_ends_as_one_that_was_not(warm, make_checkpoint, tmp_path, survived, engine, mode, seed):
    trials = Trials(warm, make_checkpoint(), tmp_path, engine, mode)
    for number in range(NUM_TRIALS if seed >= 1000 else 1):
        print(f"seed {seed + number}:", *trials.survive(seed + number), sep="\n  ")
        survived[f"kills under {engine}"] += 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "one"])
def test_the_model_of_a_checkpoint_is_joined_from_its_parts(warm, make_checkpoint, tmp_path, engine, mode):
    """Check that it is the final model, even if only the engine's parts are left."""
    whole = Trials(warm, make_checkpoint(), tmp_path, engine, mode).folder / "whole"
    last = whole / "checkpoint-6"
    text, is_complete = checkpoint.show(last)
    assert (
        is_complete
        and "processes: 2" in text
        and {"ddp": "DDP", "z": "ZeRO", "f": "FSDP"}[engine if engine == "ddp" else engine[0]] in text
    ), text
    checkpoint.export(last, tmp_path / "exported")
    assert runs.largest_difference(runs.weights(tmp_path / "exported"), runs.weights(whole)) < 1e-6
    if not (last / "latest").exists() and not (last / parts.FSDP_WEIGHTS).exists():
        return
    for file in ("manifest.json", "model.safetensors", "adapter_model.safetensors"):
        (last / file).unlink(missing_ok=True)
    checkpoint.export(last, tmp_path / "joined")
    assert runs.largest_difference(runs.weights(tmp_path / "joined"), runs.weights(whole)) < 1e-6
