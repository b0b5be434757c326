"""Distributed runs: the rendezvous, the setup that precedes that of transformers, and gathered weights.

DDP needs nothing but torchrun; --deepspeed and --fsdp select DeepSpeed and FSDP. All of them also run as CPU processes,
for trials and tests: see `use_deepspeed_on_cpu` and `use_fsdp_on_cpu`.
"""

import json
import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DeepSpeedPlugin
from torch import distributed
from transformers import TrainingArguments
from transformers.dependency_versions_check import dep_version_check
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, is_deepspeed_zero3_enabled
from transformers.utils import is_torch_distributed_available

if TYPE_CHECKING:  # importing either takes seconds
    from accelerate import PartialState
    from transformers import Trainer

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
    """Initialize torch.distributed, and DeepSpeed on a CPU, if this process is a rank of a distributed run.

    Call it before transformers sets up its devices. deepspeed, fsdp: values of the flags, false if not given.
    Raise ValueError if --deepspeed or --fsdp is given without torchrun, OSError if a rank is missing.
    """
    check_launched(deepspeed, fsdp)
    if not is_launched():
        return
    if int(os.environ["WORLD_SIZE"]) > 1 or deepspeed or fsdp:
        initialize(use_cpu=use_cpu, timeout=timeout, ddp_timeout=ddp_timeout)
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


def check_config(deepspeed: str | dict[str, Any] | None, fsdp_config: str | dict[str, Any] | None) -> list[str]:
    """Return a line for each setting in the JSON file of DeepSpeed or FSDP that a run does not accept."""
    problems: list[str] = []
    for flag, path in (("deepspeed", deepspeed), ("fsdp_config", fsdp_config)):
        if not isinstance(path, str):
            continue
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError:
            problems.append(f"--{flag} {path}: no such file; those of this project are in configs/")
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


def initialize(*, use_cpu: bool, timeout: float, ddp_timeout: float) -> None:
    """Initialize torch.distributed and check that all ranks can communicate within `timeout` seconds.

    Do nothing if it is initialized already. ddp_timeout: seconds that a later collective operation may take.
    Raise TimeoutError, naming the missing ranks, on one rank and SystemExit on the others. Raise ConnectionError if the
    rendezvous or another rank cannot be reached.
    """
    if not is_torch_distributed_available() or distributed.is_initialized():
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit, here = timedelta(seconds=timeout), f"rank {rank} on {socket.gethostname()}"
    try:
        store = next(distributed.rendezvous("env://", rank, world_size, timeout=limit))[0]
        # torchrun keeps the store when it restarts a run, so each restart uses keys of its own.
        store = distributed.PrefixStore(f"run {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        wait_for_ranks(store, rank, world_size, timeout=timeout)
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConnectionError(f"{here}: lost, or never reached, the rendezvous at {address}") from error
    backend, device = "gloo", "cpu"
    if not use_cpu:
        accelerator = torch.accelerator.current_accelerator()
        assert accelerator is not None, "without an accelerator a run has --use_cpu"
        device = accelerator.type
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
        backend = f"{device}:{distributed.get_default_backend_for_device(device)},cpu:gloo"
    try:
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
        ones = torch.ones(1, device=device)
        distributed.all_reduce(ones)
        arrived = int(ones.item())
    except RuntimeError as error:
        raise ConnectionError(
            f"{here}: all {world_size} ranks started but cannot send to each other "
            f"({str(error).splitlines()[0]}); check firewalls, and GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME "
            "where a machine has several networks"
        ) from error
    assert arrived == world_size, f"{arrived} of {world_size}"
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=ddp_timeout))


def wait_for_ranks(store: distributed.Store, rank: int, world_size: int, *, timeout: float) -> None:
    """Wait until all ranks have registered in the store.

    After `timeout` seconds, raise TimeoutError with the missing ranks on the lowest rank present, SystemExit elsewhere.
    """
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


def use_deepspeed_on_cpu() -> None:
    """Make DeepSpeed compute on the CPU and communicate by gloo, without compiling its operators (minutes)."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_SIZE", os.environ["LOCAL_WORLD_SIZE"])
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")  # left to transformers, DeepSpeed would look for MPI


def use_fsdp_on_cpu(state: "PartialState") -> None:
    """Make accelerate, which supports FSDP on accelerators only, treat these CPU processes as accelerators.

    state: that of TrainingArguments, before an Accelerator is built. For --use_cpu only.
    """
    from accelerate import DistributedType

    state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    state._shared_state["device"] = torch.device("cpu")


def is_sharded(training: "TrainingArguments") -> bool:
    """Return whether a run shards the weights themselves across the ranks (FSDP, ZeRO-3)."""
    return bool(training.fsdp) or is_deepspeed_zero3_enabled()


def whole_weights(trainer: "Trainer") -> dict[str, torch.Tensor] | None:
    """Return all weights of a sharded model by name, gathered on rank 0; None if every rank holds them anyway.

    Every rank must call it.
    """
    if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return None
