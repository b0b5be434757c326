"""Ranks that die, start late or are told to stop, full disks, broken networks: each run can be finished afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import runs

LORA = ("--use_lora", "--lora_dropout", "0.2", "--resume", "auto")
SETTINGS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 1}


@pytest.fixture(scope="module")
def two(make_checkpoint, tmp_path_factory):
    """Return a function that gives the command of a run of two processes, whose result goes to FOLDER/NAME."""
    folder = tmp_path_factory.mktemp("two")

    def command(name, *flags, **settings):
        return runs.command(make_checkpoint(), folder / name, *LORA, *flags, **SETTINGS | settings), folder / name

    return command


@pytest.fixture(scope="module")
def whole(warm, two):
    """Return the result of an undisturbed run of two ranks."""
    argv, out = two("whole")
    assert warm.run(argv, ranks=2) == [0, 0], warm.said
    return out


def finish(warm, argv, out, whole, **options):
    """Run a command once more, and check that it ends like an undisturbed run."""
    assert warm.run(argv, ranks=2, **options) == [0, 0], warm.said
    assert runs.losses(out) == pytest.approx(runs.losses(whole), rel=1e-5)
    assert runs.largest_difference(runs.weights(out), runs.weights(whole)) < 1e-5
    return "\n".join(warm.said)


def test_a_process_that_dies_ends_the_others_with_one_line(warm, two, whole, survived):
    argv, out = two("dead")
    began = time.monotonic()
    assert warm.run(argv, ranks=2, faults={"1": {"step": 3, "do": "SIGKILL"}}, patience=60) == [1, -9]
    assert time.monotonic() - began < 60
    lines = warm.said[0].splitlines()
    assert lines[-1].startswith("error: process 0 of 2 has lost the others at step 4") and "Traceback" not in lines
    assert "resuming from" in finish(warm, argv, out, whole)
    survived["dead process"] += 1


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=str)
def test_a_signal_to_one_process_stops_all_after_the_same_step(warm, two, whole, survived, number):
    argv, out = two(number.name)
    code = 128 + number
    assert warm.run(argv, ranks=2, faults={"1": {"step": 2, "do": number.name}}, patience=60) == [code, code], warm.said
    assert f"stopped by {number.name} after step 3 of 6; {out}/checkpoint-3 is complete" in warm.said[0]
    assert "checkpoint-3: step 3 of 6 (complete" in finish(warm, argv, out, whole)
    survived["signal"] += 1


@pytest.mark.slow
def test_a_late_process_is_waited_for(warm, two, whole, survived):
    argv, out = two("late")
    faults = {"1": {"late": 3, "step": 2, "sleep": 3}, "0": {"step": 4, "sleep": 2}}
    finish(warm, argv, out, whole, faults=faults)
    survived["late process"] += 1


def trained_on(folder):
    """Return the ids of all samples that a run has trained on, as often as it has."""
    lines = [line for file in folder.glob("ids.*") for line in file.read_text().splitlines()]
    return Counter(name for line in lines for name in json.loads(line))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(2, 1), (1, 2), (3, 2)], ids="{0[0]} to {0[1]}".format)
@pytest.mark.parametrize("kind", ["files", "packed", "stream"])
def test_another_number_of_processes_loses_no_sample_and_repeats_none(
    warm, make_checkpoint, tmp_path, survived, ranks, kind
):
    samples = [(None, f"{index}?", "word " * (index % 5 + 1)) for index in range(23)]
    data, flags, steps = runs.write_data(tmp_path, samples), (*LORA,), {"num_train_epochs": 1, "max_steps": -1}
    if kind == "packed":
        flags += ("--packing", "auto", "--model_max_length", "70")
    if kind == "stream":
        lines = "".join(json.dumps(record) + "\n" for record in json.loads(data.read_text()))
        data = tmp_path / "data.jsonl"
        data.write_text(lines)
        flags += ("--streaming",)
        steps = {"max_steps": 2 + -(-(23 - 2 * 2 * ranks[0]) // (2 * ranks[1]))}
    settings = {"data_path": data, "save_strategy": "no", "per_device_train_batch_size": 2, **steps}
    argv = runs.command(make_checkpoint(), tmp_path / "out", *flags, **settings)
    ids = [{"ids": str(tmp_path / f"ids.{rank}")} for rank in range(3)]
    faults = {str(rank): ids[rank] | {"step": 1} | ({} if rank else {"do": "SIGTERM"}) for rank in range(ranks[0])}
    assert warm.run(argv, ranks=ranks[0], faults=faults, patience=60) == [143] * ranks[0], warm.said
    assert 0 < sum(trained_on(tmp_path).values()) < 23
    faults = {str(rank): ids[rank] for rank in range(ranks[1])}
    assert warm.run(argv, ranks=ranks[1], faults=faults) == [0] * ranks[1], warm.said
    seen, names = trained_on(tmp_path), {f"sample-{index}" for index in range(23)}
    assert seen.keys() == names
    # A stream has no end: what its last step takes beyond the epoch is of the next one.
    beyond = 0 if kind != "stream" else 2 * 2 * ranks[0] + (steps["max_steps"] - 2) * 2 * ranks[1] - 23
    assert sum(seen.values()) == 23 + beyond and max(seen.values()) <= 1 + (beyond > 0)
    survived["other number of processes"] += 1


@pytest.mark.slow
def test_parts_of_deepspeed_are_refused_by_another_number_of_processes(warm, two):
    argv, _ = two("parts", "--deepspeed", str(runs.ROOT / "configs/deepspeed/zero2.json"), max_steps=2)
    assert warm.run(argv, ranks=2) == [0, 0], warm.said
    assert warm.run([*argv, "--max_steps", "4"], ranks=1, distributed=True) == [1]  # with steps left to train
    assert "DeepSpeed wrote it in 2 parts" in warm.said[0].splitlines()[-1]


@pytest.mark.slow
def test_torchrun_starts_dead_processes_again_and_they_go_on(two, whole, survived):
    argv, out = two("restarted")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max_restarts", "1"]
    script = Path(__file__).with_name("dying.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIES": "1:5"}
    environment["PYTHONPATH"] = os.pathsep.join([str(runs.ROOT), str(script.parent)])
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), *argv], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checkpoint-4: step 4 of 6 (complete" in done.stderr
    assert runs.losses(out) == pytest.approx(runs.losses(whole), rel=1e-5)
    survived["restart by torchrun"] += 1


@pytest.mark.slow
def test_torchrun_that_is_told_to_stop_leaves_a_checkpoint(warm, two, whole, survived):
    """Send SIGINT to the whole group like a terminal, so every process gets it twice."""
    argv, out = two("interrupted", "--dataloader_num_workers", "1")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(runs.ROOT)}
    slow = [word if word != "6" else "600" for word in argv]
    process = subprocess.Popen(
        [sys.executable, *torchrun, str(runs.ROOT / "finetune.py"), *slow],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    deadline = time.monotonic() + 300
    while not list(out.glob("checkpoint-2")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=200)[1]
    assert process.returncode != 0 and "stopped by SIGINT after step" in said, said[-3000:]
    step = said.partition("stopped by SIGINT after step ")[2].split()[0]
    assert (out / f"checkpoint-{step}" / "manifest.json").is_file()
    survived["interrupted torchrun"] += 1


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a file system of so many KiB, or resizes it; skip if that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(kib):
        options = f"size={kib}k" + (",remount" if place.is_mount() else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("no file system can be mounted here")
        return place

    yield resize
    subprocess.run(["umount", str(place)], capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_keeps_the_checkpoint_before(warm, make_checkpoint, small_disk, tmp_path, survived, room, ranks):
    """Fill the disk at several points of the second checkpoint; with free space the same command finishes the run."""
    settings = {**SETTINGS, "data_path": runs.write_data(tmp_path), "max_steps": 4}
    flags = ("--resume", "auto")
    whole = runs.command(make_checkpoint(), tmp_path / "whole", *flags, **settings)
    assert warm.run(whole, ranks=ranks) == [0] * ranks, warm.said
    size = sum(file.stat().st_size for file in (tmp_path / "whole" / "checkpoint-2").rglob("*")) / 1024
    disk = small_disk(int(size * (1 + room)) + 150)
    argv = runs.command(make_checkpoint(), disk / "out", *flags, **settings)
    codes = warm.run(argv, ranks=ranks, patience=60)
    said = "\n".join(warm.said)
    assert set(codes) == {1} and "checkpoint-4: could not be written" in said, said
    assert "checkpoint-2, which is as it was" in said and "Traceback" not in said
    assert [path.name for path in (disk / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (disk / "out" / ".saving").exists()
    small_disk(int(size * 6) + 2000)
    assert warm.run(argv, ranks=ranks) == [0] * ranks, warm.said
    assert "resuming from" in warm.said[0] and runs.losses(disk / "out") == pytest.approx(
        runs.losses(tmp_path / "whole"), rel=1e-6
    )
    survived["full disk"] += 1


@pytest.fixture
def two_machines():
    """Return two joined network namespaces, {"names": [..], "cut": function}; skip if none can be made."""
    tag = f"qv{os.getpid() % 10000}"
    names, ends = [f"{tag}a", f"{tag}b"], [f"{tag}x", f"{tag}y"]

    def ip(*words):
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no network namespaces here: {done.stderr.strip()}")

    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and the command ip")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", end)
            for device in (end, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield {"names": names, "ends": ends, "ip": ip}
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_two_machines_one_of_which_is_cut_off(warm, two, whole, tmp_path, survived, two_machines):
    """Check machines in networks of their own: without the link both end in time, and with it the run resumes."""
    names, ends, ip = (two_machines[key] for key in ("names", "ends", "ip"))
    places = {
        str(rank): {"GLOO_SOCKET_IFNAME": ends[rank], "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} for rank in (0, 1)
    }
    machines = {
        "netns": {"0": names[0], "1": names[1]},
        "env_of": places,
        "env": {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29511"},
    }
    argv, out = two("machines", "--ddp_timeout", "20", "--meeting_timeout", "60")
    cable = tmp_path / "cut"
    cutter = subprocess.Popen(
        ["sh", "-c", f"until [ -e {cable} ]; do sleep 0.1; done; ip -n {names[1]} link set {ends[1]} down"]
    )
    faults = {"1": {"step": 3, "touch": str(cable), "sleep": 3}}
    began = time.monotonic()
    codes = warm.run(argv, ranks=2, faults=faults, patience=100, limit=200, **machines)
    cutter.wait(10)
    assert codes == [1, 1] and time.monotonic() - began < 150, (codes, warm.said)
    assert all("has lost the others at step" in said for said in warm.said), warm.said
    ip("-n", names[1], "link", "set", ends[1], "up")
    assert "resuming from" in finish(warm, argv, out, whole, **machines)
    survived["network cut"] += 1
