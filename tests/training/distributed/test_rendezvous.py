"""The rendezvous of a distributed run: all ranks, or one error that names the missing ones."""

import json
import subprocess
import sys
import threading

import pytest
from helpers import runs
from torch.distributed import HashStore

from qwen_vl.training.distributed import engines
from qwen_vl.training.flags import arguments

# One rank of a run, without the seconds that torchrun takes to start.
MEET = """
import os, sys
from qwen_vl.cli.run import leave
from qwen_vl.training.distributed import engines
engines.initialize(use_cpu=True, timeout=float(sys.argv[1]), ddp_timeout=60)
print("met", os.environ["RANK"])
leave(0, together=True)  # as a command ends
"""


def test_all_ranks_register():
    store = HashStore()
    threads = [
        threading.Thread(target=engines.wait_for_ranks, args=(store, rank, 3), kwargs={"timeout": 20})
        for rank in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_missing_ranks_are_named_once():
    store = HashStore()
    store.set("here/2", "c")
    with pytest.raises(TimeoutError, match=r"^ranks 0, 3 of 4 did not come within 0.1 seconds"):
        engines.wait_for_ranks(store, 1, 4, timeout=0.1)
    with pytest.raises(SystemExit):
        engines.wait_for_ranks(store, 2, 4, timeout=0.1)


def test_a_late_rank_is_waited_for():
    store = HashStore()
    late = threading.Timer(0.5, store.set, args=("here/1", "b"))
    late.start()
    engines.wait_for_ranks(store, 0, 2, timeout=20)
    late.join()


def test_an_engine_needs_several_processes(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"torchrun.*finetune_ds\.sh"):
        engines.prepare(use_cpu=True, deepspeed="x.json", fsdp=None, timeout=1, ddp_timeout=1)


def test_config_files_leave_the_command_line_its_decisions(tmp_path, capsys):
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupLR"}, "version": 1}))
    flags = ["--output_dir", "o", "--data_path", "d.json", "--deepspeed", str(wrong), "--fsdp_config", str(wrong)]
    for argv, reasons in (
        (flags, ["leave out optimizer and scheduler", "--optim", "version 1; write 2"]),
        ([*flags, "--deepspeed", "none.json"], ["none.json: no such file"]),
    ):
        with pytest.raises(SystemExit):
            arguments.parse(argv)
        shown = capsys.readouterr().err
        assert all(reason in shown for reason in reasons), shown


def test_every_config_of_this_project_is_taken():
    for path in sorted((runs.ROOT / "configs" / "deepspeed").glob("*.json")):
        assert engines.check_config(str(path), None) == []
    for path in sorted((runs.ROOT / "configs" / "fsdp").glob("*.json")):
        assert engines.check_config(None, str(path)) == []


@pytest.mark.slow
def test_two_processes_initialize_without_an_agent(tmp_path):
    """Check ranks that another launcher starts: rank 0 hosts the rendezvous."""
    processes = []
    for rank in range(2):
        where = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29123}
        env = {"PYTHONPATH": str(runs.ROOT), **{name: str(value) for name, value in where.items()}}
        command = [sys.executable, "-c", MEET, "120"]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    shown = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and "met 0" in shown[0] and "met 1" in shown[1]
