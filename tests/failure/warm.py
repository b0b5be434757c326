"""A process that has imported everything and forks runs of finetune.main, which then take a second instead of 20.

One JSON object a line on stdin, one on stdout; see `Warm` in tests/failure/conftest.py, which starts it.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path

# ruff: noqa: E402
REPLIES = os.fdopen(os.dup(1), "w")  # libraries write to stdout when they are imported
os.dup2(2, 1)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import finetune
from qwen_vl.cli import run
from qwen_vl.training import trainer

for module in ("qwen_vl.data.build", "qwen_vl.data.packing", "qwen_vl.training.vision_cache.cache", "deepspeed"):
    import_module(module)  # so that no child has to

CLONE_NEWNET = 0x40000000
WRITES = os.O_WRONLY | os.O_RDWR
EVENTS = {"os.rename", "os.mkdir", "os.remove", "shutil.rmtree", "os.truncate"}


def count_events(folder, at, seen_file=None):
    """Kill this process at event number `at` below a folder: a file opened to write, renamed, made or removed.

    With `seen_file` the number of the events is written there instead.
    """
    seen = [0]

    def hook(event, args):
        is_write = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if not (is_write or event in EVENTS) or not args or not str(args[0]).startswith(folder):
            return
        seen[0] += 1
        if seen[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if seen_file:
            file = os.open(seen_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(file, str(seen[0]).encode())
            os.close(file)

    sys.addaudithook(hook)


def before_step(act):
    """Call `act(step)` before each step of the training in this process."""
    plain = trainer.QWenTrainer.get_batch_samples

    def get_batch_samples(self, *args):
        act(self.state.global_step)
        return plain(self, *args)

    trainer.QWenTrainer.get_batch_samples = get_batch_samples


def write_ids(file):
    """Write the ids of each batch that this process trains on into a file, one JSON list a line."""
    plain = trainer.QWenTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            with open(file, "a") as out:
                out.write(json.dumps(list(inputs["ids"])) + "\n")
        return plain(self, model, inputs, *args, **kwargs)

    trainer.QWenTrainer.compute_loss = compute_loss


def arm(fault, output_dir):
    """Arm this process with a fault.

    {"event": number}: see `count_events`. {"step": n, "after": seconds}: kill -9 that long after a step has begun.
    {"step": n, "do": SIGNAL} or {"step": n, "sleep": seconds, "touch": file}: before a step. {"late": seconds}.
    {"count": file}, {"ids": file}: nothing, but what happened is written there.
    """
    if "ids" in fault:
        write_ids(fault["ids"])
    if "event" in fault or "count" in fault:
        count_events(str(output_dir), fault.get("event"), fault.get("count"))
    if "late" in fault:
        time.sleep(fault["late"])
    if "after" in fault:  # seconds within a step, at any place of it

        def act(step):
            if step == fault["step"]:
                threading.Timer(fault["after"], os.kill, (os.getpid(), signal.SIGKILL)).start()

        before_step(act)
    elif "step" in fault:

        def act(step):
            if step != fault["step"]:
                return
            if "touch" in fault:
                Path(fault["touch"]).touch()
            if "do" in fault:
                os.kill(os.getpid(), getattr(signal, fault["do"]))
            time.sleep(fault.get("sleep", 0))

        before_step(act)


def child(request, rank, port):
    """Run one process of a run, and exit with its code."""
    output = os.open(f"{request['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    torch.set_num_threads(1)
    size, code = request["ranks"], 99
    if size > 1 or request.get("distributed"):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in places.items()}
    os.environ |= request.get("env", {})
    os.environ |= request.get("env_of", {}).get(str(rank), {})
    if name := request.get("netns", {}).get(str(rank)):
        with open(f"/run/netns/{name}") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0
    try:
        arguments = request["argv"]
        arm(request.get("faults", {}).get(str(rank), {}), arguments[arguments.index("--output_dir") + 1])
        run.run(finetune.main, arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 98
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve(request):
    """Return the exit codes of the processes of a run, negative for a signal; when one has died, the others are killed.

    "patience": seconds that the others get to end by themselves. "limit": seconds for all of it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = {}
    for rank in range(request["ranks"]):
        process = os.fork()
        if process == 0:
            child(request, rank, port)
        children[process] = rank
    codes, deadline = {}, time.monotonic() + request["limit"]
    while children:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process in children:
            rank = children.pop(process)
            codes[rank] = os.waitstatus_to_exitcode(status)
            if codes[rank]:
                deadline = min(deadline, time.monotonic() + request.get("patience", 0))
        elif time.monotonic() > deadline:
            for process in children:
                os.kill(process, signal.SIGKILL)
            deadline = float("inf")
        else:
            time.sleep(0.02)
    return [codes[rank] for rank in range(request["ranks"])]


def main():
    print(json.dumps("ready"), file=REPLIES, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=REPLIES, flush=True)


if __name__ == "__main__":
    main()
