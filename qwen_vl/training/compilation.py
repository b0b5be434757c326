"""torch.compile for the layers whose cost is memory traffic: --compile_layers."""

import os
import shutil

from qwen_vl.model.decoder_qwen import QWenMLP, RMSNorm

COMPILERS = ("g++", "clang++", "cl")


def check(settings):
    """A line for everything that keeps the flags of compilation from working."""
    problems = []
    if settings.torch_compile or settings.torch_compile_backend or settings.torch_compile_mode:
        problems.append(
            "--torch_compile compiles the whole model, anew for each set of lengths; use --compile_layers True instead"
        )
    if not settings.compile_layers:
        return problems
    if settings.fsdp or settings.deepspeed:
        problems.append("--compile_layers: --fsdp and --deepspeed hook into each layer; leave it out")
    if settings.q_lora:
        problems.append("--compile_layers: quantised layers have kernels of their own; leave it out with --q_lora")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS)):
        problems.append(
            f"--compile_layers needs a C++ compiler; install one of {', '.join(COMPILERS)}, or leave it out"
        )
    return problems


def compile_layers(model):
    """The model, whose decoder's norms and feed-forward layers run compiled; their weights and names stay.

    Not attention: packed rows have other segments each time, and each would be compiled anew. Lengths of rows do not
    count. Compilation happens in the first step.
    """
    for module in model.modules():
        if isinstance(module, (QWenMLP, RMSNorm)):
            module.compile(dynamic=True)
    return model
