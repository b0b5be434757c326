"""What a command of this project sets before torch is imported: how threads wait, and what libraries may say.

Commands alone call `prepare`: a program that imports this package finds its libraries unchanged. The standard library
is all that is imported here. `python -m qwen_vl.startup [flags of the command]` prints the thread settings for a shell.
"""

import logging
import os
import re
import sys
import warnings
from glob import glob
from importlib import metadata
from itertools import zip_longest
from pathlib import Path

# Rounds that a thread of libgomp spins before it sleeps; its default is 300,000. See docs/speed.md for the measurement.
SPIN_COUNT = "1000"
THREAD_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # of the user; either of them keeps ours away
# NVIDIA, also Jetson and WSL 2; AMD. Intel's /dev/dri is in every laptop, so there the build of torch decides.
GPU_FILES = ("/dev/nvidia*", "/dev/nvhost*", "/dev/nvgpu*", "/dev/dxg", "/dev/kfd")
GPU_CHOICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

# Loggers that warn of kernels that are not there and not needed (torchao, bitsandbytes), of what torchao makes torch
# complain about, of each retry of a download, and of whatever gptqmodel finds worth a line. Their errors still show.
ERRORS_ONLY = ("torchao", "bitsandbytes", "torch.utils._pytree", "huggingface_hub", "gptqmodel")
UNWANTED_LINES = {  # logger: the start of a line that is no news
    "DeepSpeed": "Setting accelerator to CPU",  # as --use_cpu says
    "transformers.training_args": "When using FSDP, prefer",  # what our TrainingArguments do already
    # Of a greedy answer, where a checkpoint says how it would sample.
    "transformers.generation.configuration_utils": "The following generation flags are not valid",
}


def prepare(words: list[str] | None = None) -> None:
    """Set up this process for a command with the arguments `words` (default: those of the process).

    Call it before torch is imported: libgomp and the libraries look once.
    """
    os.environ |= thread_settings(sys.argv[1:] if words is None else words)
    quiet_libraries()


def thread_settings(words: list[str]) -> dict[str, str]:
    """Return the environment variables that let the threads of a CPU run sleep while they wait; {} for other runs.

    torch on Linux brings libgomp, whose threads spin while they wait for one another. On a busy machine they spin away
    the time that the other threads of the same run need, and a step takes many times as long.
    Nothing is set where the user has set OMP_WAIT_POLICY or GOMP_SPINCOUNT, on other systems, whose OpenMP does not
    read the variable, and on a GPU's way. A run is on the CPU if `words`, or the YAML file among them, have --use_cpu;
    if torch was built for the CPU alone; if no device file of a GPU exists; or if CUDA_VISIBLE_DEVICES, or AMD's, hides
    all of them. Where that leaves a doubt, nothing is set. torch is not imported to find out.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in THREAD_CHOICES):
        return {}
    return {"GOMP_SPINCOUNT": SPIN_COUNT} if asks_for_cpu(words) or not may_have_gpu() else {}


def asks_for_cpu(words: list[str]) -> bool:
    """Return whether a command line has --use_cpu or --no_cuda; the YAML file that it may begin with counts less."""
    asked = False
    for path in words[:2]:  # a verb may stand before it
        if path.endswith((".yaml", ".yml")) and os.path.isfile(path):
            text = Path(path).read_text(encoding="utf-8", errors="replace")
            values = re.findall(r"^(?:use_cpu|no_cuda)\s*:\s*[\"']?(\w+)", text, re.MULTILINE)
            asked = any(map(is_yes, values))
    for word, after in zip_longest(words, words[1:], fillvalue="--"):
        flag, given, value = word.partition("=")
        if flag.replace("-", "_") in ("__use_cpu", "__no_cuda"):
            asked = is_yes(value if given else "yes" if after.startswith("--") else after)
    return asked


def is_yes(value: str) -> bool:
    return value.lower() in ("yes", "true", "t", "y", "1", "on")


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_have_gpu() -> bool:
    """Return whether torch could use a GPU here, as far as files tell; True in doubt."""
    try:
        build = metadata.version("torch").partition("+")[2]
    except metadata.PackageNotFoundError:  # built in its own folder, for whatever
        build = ""
    if build in ("cpu", "xpu"):
        return build == "xpu"
    hidden = any(os.environ.get(name) in ("", "-1") for name in GPU_CHOICES)
    return not hidden and any(glob(pattern) for pattern in GPU_FILES)


def quiet_libraries() -> None:
    """Switch off, for this process, what libraries say that is neither ours nor the user's concern.

    Those are loggers about missing kernels, the deprecations that libraries find in one another, and progress bars
    where no terminal shows them. Errors stay, and so do the user's own settings (`python -W`, PYTHONWARNINGS).
    """
    for name in ERRORS_ONLY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in UNWANTED_LINES:
        logging.getLogger(name).addFilter(is_wanted)  # it stays where a library sets a level at its import
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # which transformers asks as well


def is_wanted(record: logging.LogRecord) -> bool:
    """Return whether a line of a log is none of UNWANTED_LINES."""
    return UNWANTED_LINES[record.name] not in str(record.msg)


if __name__ == "__main__":
    for name, value in thread_settings(sys.argv[1:]).items():
        print(f"export {name}={value}")
