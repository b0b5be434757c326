"""Process settings of a command that must precede the import of torch: thread waiting and log levels of libraries.

Only commands call `prepare`; importing this package changes no library's settings. This module imports the standard
library alone. `python -m qwen_vl.startup [flags of the command]` prints the thread settings for a shell.
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

# Iterations that an idle libgomp thread spins before it sleeps; the default is 300,000. docs/speed.md has measurements.
SPIN_COUNT = "1000"
THREAD_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # if the user sets either, we set nothing
# NVIDIA (also Jetson and WSL 2) and AMD. Every laptop has Intel's /dev/dri, so there the build of torch decides.
GPU_FILES = ("/dev/nvidia*", "/dev/nvhost*", "/dev/nvgpu*", "/dev/dxg", "/dev/kfd")
GPU_CHOICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

# Loggers limited to errors: they warn about missing kernels that are not needed (torchao, bitsandbytes), about the use
# of torch by torchao, about each retry of a download, and about details of gptqmodel.
ERRORS_ONLY = (
    "torchao",
    "bitsandbytes",
    "torch.utils._pytree",
    "torch.utils.cpp_extension",
    "huggingface_hub",
    "modelscope_hub",
    "gptqmodel",
)
UNWANTED_LINES = {  # logger: part of a message without news
    "DeepSpeed": "Setting accelerator to CPU",  # as --use_cpu says
    "transformers.training_args": "When using FSDP, prefer",  # our TrainingArguments already do
    # Logged for a greedy answer if the checkpoint has sampling settings.
    "transformers.generation.configuration_utils": "The following generation flags are not valid",
}


def prepare(words: list[str] | None = None) -> None:
    """Set up this process for a command with the arguments `words` (default: those of the process).

    Call it before torch is imported: libgomp and the libraries read their settings once.
    """
    os.environ |= thread_settings(sys.argv[1:] if words is None else words)
    quiet_libraries()


def thread_settings(words: list[str]) -> dict[str, str]:
    """Return the environment variables that let idle threads of a CPU run sleep; {} for other runs.

    On Linux torch comes with libgomp, whose idle threads spin. On a busy machine the spinning takes the time that other
    threads of the same run need, and a step takes many times as long.
    Return {} if the user has set OMP_WAIT_POLICY or GOMP_SPINCOUNT, on other systems (their OpenMP does not read the
    variable), and if the run may use a GPU. A run uses the CPU in four cases: `words`, or a YAML file among them, have
    --use_cpu; torch was built for the CPU alone; no device file of a GPU exists; CUDA_VISIBLE_DEVICES, or AMD's
    variable, hides all GPUs. This function does not import torch.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in THREAD_CHOICES):
        return {}
    return {"GOMP_SPINCOUNT": SPIN_COUNT} if asks_for_cpu(words) or not may_have_gpu() else {}


def asks_for_cpu(words: list[str]) -> bool:
    """Return whether a command line sets --use_cpu or --no_cuda; it takes precedence over a YAML file given first."""
    asked = False
    for path in words[:2]:  # a verb may come first
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
    """Return whether the value of a flag means true."""
    return value.lower() in ("yes", "true", "t", "y", "1", "on")


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_have_gpu() -> bool:
    """Return whether torch could use a GPU here, judged by files; True if unsure."""
    try:
        build = metadata.version("torch").partition("+")[2]
    except metadata.PackageNotFoundError:  # built from source
        build = ""
    if build in ("cpu", "xpu"):
        return build == "xpu"
    hidden = any(os.environ.get(name) in ("", "-1") for name in GPU_CHOICES)
    return not hidden and any(glob(pattern) for pattern in GPU_FILES)


def quiet_libraries() -> None:
    """Silence messages of libraries, in this process, that users need not act on.

    These are warnings about missing kernels, deprecations between libraries, and progress bars without a terminal.
    Errors stay, and so do the user's own settings (`python -W`, PYTHONWARNINGS).
    """
    for name in ERRORS_ONLY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in UNWANTED_LINES:
        logging.getLogger(name).addFilter(is_wanted)  # stays if a library sets its log level on import
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers reads it too


def is_wanted(record: logging.LogRecord) -> bool:
    """Return whether a log record is not one of UNWANTED_LINES."""
    return UNWANTED_LINES[record.name] not in str(record.msg)


if __name__ == "__main__":
    for name, value in thread_settings(sys.argv[1:]).items():
        print(f"export {name}={value}")
