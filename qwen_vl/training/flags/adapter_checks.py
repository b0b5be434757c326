"""Checks of the flags of adapters, alone and combined, before anything is loaded."""

from argparse import Namespace

LORA_BIASES = ("none", "all", "lora_only")
LORA_STARTS = ("default", "gaussian", "pissa", "olora")
QUANTIZATIONS = ("nf4", "int8")
OF_NEW_ADAPTERS = ("use_rslora", "use_dora")  # flags that an adapter folder decides
OF_ADAPTERS = (*OF_NEW_ADAPTERS, "lora_weight_path", "modules_to_save", "lora_lr", "loraplus_lr_ratio")


def check(settings: Namespace) -> list[str]:
    """Return a line for each wrong value of these flags and each wrong combination."""
    problems = [] if settings.use_lora else [
        f"--{flag} needs --use_lora" for flag in OF_ADAPTERS if getattr(settings, flag) not in (None, False)
    ]  # fmt: skip
    problems += check_values(settings)
    if settings.use_lora and not settings.fix_vit:
        problems.append(
            "--fix_vit False has no effect with --use_lora, which freezes the base; leave one of them out, or put "
            "adapters into the ViT: --lora_target_modules attention vision"
        )
    if settings.quantization and not settings.q_lora:
        problems.append("--quantization needs --q_lora: quantized weights cannot train themselves")
    if settings.lora_weight_path:
        decided = [flag for flag in (*OF_NEW_ADAPTERS, "modules_to_save") if getattr(settings, flag)]
        decided += ["init_lora_weights"] if settings.init_lora_weights != "default" else []
        problems += [
            f"--{flag}: the adapter of --lora_weight_path decides that; leave one of them out" for flag in decided
        ]
        if settings.new_special_tokens:
            problems.append(
                "--new_special_tokens: rows for new tokens cannot be added to the adapter of --lora_weight_path; "
                "leave one of them out"
            )
    return problems


def check_values(settings: Namespace) -> list[str]:
    """Return a line for each value of these flags that no run can use."""
    problems = []
    start = settings.init_lora_weights
    if start.startswith("pissa_niter"):
        problems.append(
            f"--init_lora_weights {start}: starts from random numbers, so the saved adapter would load as another "
            "model; use pissa, which does not"
        )
    elif start not in LORA_STARTS:
        problems.append(f"--init_lora_weights {start}: use one of {', '.join(LORA_STARTS)}")
    if settings.lora_bias not in LORA_BIASES:
        problems.append(f"--lora_bias {settings.lora_bias}: use one of {', '.join(LORA_BIASES)}")
    if settings.quantization not in (None, *QUANTIZATIONS):
        problems.append(f"--quantization {settings.quantization}: use one of {', '.join(QUANTIZATIONS)}")
    return problems
