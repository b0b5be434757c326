"""A run of several processes: how they meet, what must be so before transformers sets them up, and whole weights.

DDP needs nothing but torchrun; DeepSpeed and FSDP are asked for by --deepspeed and --fsdp. All of them also run as CPU
processes, for trying and testing; what only those need stands in `use_deepspeed_on_cpu` and `use_fsdp_on_cpu`.
"""

import json
import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate.utils import DeepSpeedPlugin
from torch import distributed
from transformers import TrainingArguments
from transformers.dependency_versions_check import dep_version_check
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, is_deepspeed_zero3_enabled
from transformers.utils import is_torch_distributed_available

POLL_SECONDS = 0.2


def is_launched() -> bool:
    """Return whether a launcher such as torchrun started this process as a rank of a run."""
    return "RANK" in os.environ


def check_launched(deepspeed: str | None, fsdp: bool | str | list | None) -> None:
    """Raise ValueError if --deepspeed or --fsdp is not started by torchrun, ImportError without DeepSpeed."""
    if not is_launched() and (deepspeed or fsdp):
        raise ValueError(
            f"--{'deepspeed' if deepspeed else 'fsdp'} needs processes that torchrun started: "
            "use a launcher such as finetune/finetune_ds.sh (NPROC=1 for one GPU)"
        )
    if deepspeed:
        dep_version_check("deepspeed")


def prepare(
    *,
    use_cpu: bool,
    deepspeed: str | None,
    fsdp: bool | str | list | None,
    timeout: float,
    ddp_timeout: int,
) -> None:
    """Connect the processes of this run and set what DeepSpeed must know, before transformers sets up its devices.

    Raises ValueError if --deepspeed or --fsdp is not started by torchrun, OSError if a process is missing.
    """
    check_launched(deepspeed, fsdp)
    if not is_launched():
        return
    if int(os.environ["WORLD_SIZE"]) > 1 or deepspeed or fsdp:
        meet(use_cpu=use_cpu, timeout=timeout, ddp_timeout=ddp_timeout)
    if deepspeed and use_cpu:
        use_deepspeed_on_cpu()


def deepspeed_settings(training: TrainingArguments) -> tuple[HfTrainerDeepSpeedConfig, DeepSpeedPlugin]:
    """Return DeepSpeed's config, filled in from the flags, and its plugin, as transformers' TrainingArguments do."""
    try:
        config = HfTrainerDeepSpeedConfig(training.deepspeed)
        config.trainer_config_process(training)
    except ValueError as error:  # of several lines
        raise ValueError(f"--deepspeed {training.deepspeed}: {' '.join(str(error).split())}") from error
    return config, DeepSpeedPlugin(hf_ds_config=config)


def check_config(deepspeed, fsdp_config):
    """A line for everything in DeepSpeed's or FSDP's JSON file that a run of ours does not take."""
    problems = []
    for flag, path in (("deepspeed", deepspeed), ("fsdp_config", fsdp_config)):
        if not isinstance(path, str):
            continue
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError:
            problems.append(f"--{flag} {path}: no such file; those of this project lie in configs/")
            continue
        except ValueError as error:
            problems.append(f"--{flag} {path}: not JSON ({error})")
            continue
        decided = [key for key in ("optimizer", "scheduler") if key in config]
        if decided:
            problems.append(f"--{flag} {path}: leave out {' and '.join(decided)}, which flags such as --optim decide")
        if flag == "fsdp_config" and int(config.get("version", 2)) != 2:
            problems.append(f"--{flag} {path}: version {config['version']}; write 2")
    return problems


def meet(*, use_cpu, timeout, ddp_timeout):
    """None; torch.distributed is initialised, and every process has sent to every other within `timeout` seconds.

    Raises TimeoutError, in one process, that names the ranks which did not come; in the others SystemExit.
    """
    if not is_torch_distributed_available() or distributed.is_initialized():
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit, here = timedelta(seconds=timeout), f"rank {rank} on {socket.gethostname()}"
    try:
        store = next(distributed.rendezvous("env://", rank, world_size, timeout=limit))[0]
        # A restarted run meets anew in the store of the one before, which torchrun keeps.
        store = distributed.PrefixStore(f"run {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        roll_call(store, rank, world_size, timeout=timeout)
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConnectionError(f"{here}: lost, or never reached, the meeting point {address}") from error
    backend = "gloo"
    if not use_cpu:
        device = torch.accelerator.current_accelerator().type
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
        backend = f"{device}:{distributed.get_default_backend_for_device(device)},cpu:gloo"
    try:
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
        ones = torch.ones(1, device="cpu" if use_cpu else device)
        distributed.all_reduce(ones)
        arrived = int(ones.item())
    except RuntimeError as error:
        raise ConnectionError(
            f"{here}: all {world_size} processes came but cannot send to each other "
            f"({str(error).splitlines()[0]}); check firewalls, and GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME "
            "where a machine has several networks"
        ) from error
    assert arrived == world_size, f"{arrived} of {world_size}"
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=ddp_timeout))


def roll_call(store, rank, world_size, *, timeout):
    """None, once all ranks have signed in; after `timeout` seconds the lowest rank present names the missing ones."""
    store.set(f"here/{rank}", socket.gethostname())
    deadline, missing = time.monotonic() + timeout, list(range(world_size))
    while missing := [other for other in missing if not store.check([f"here/{other}"])]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    if not missing:
        return
    if rank != min(set(range(world_size)) - set(missing)):
        sys.exit(1)  # one error is enough
    raise TimeoutError(
        f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} of {world_size} did not come within "
        f"{timeout:g} seconds (--meeting_timeout); look at the machines that should run them, at MASTER_ADDR and "
        "MASTER_PORT there, and at firewalls"
    )


def use_deepspeed_on_cpu():
    """None; DeepSpeed computes on the CPU and sends by gloo. Nothing of it is compiled, which would take minutes."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_SIZE", os.environ["LOCAL_WORLD_SIZE"])
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")  # transformers leaves that to DeepSpeed, which would want MPI


def use_fsdp_on_cpu(state):
    """None; accelerate, which knows FSDP on accelerators alone, takes these CPU processes for some.

    state: the PartialState of TrainingArguments, before an Accelerator is made. For --use_cpu only.
    """
    from accelerate import DistributedType

    state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    state._shared_state["device"] = torch.device("cpu")


def is_sharded(training):
    """Whether TrainingArguments spread the weights themselves over the ranks."""
    return bool(training.fsdp) or is_deepspeed_zero3_enabled()


def whole_weights(trainer):
    """All weights that a trainer has trained, by name, gathered on rank 0; None where each process holds them anyway.

    Every process must call it.
    """
    if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return None
