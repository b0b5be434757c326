"""An adapter and its base become one standalone checkpoint."""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel

from qwen_vl.training import loading
from qwen_vl.training.trainer import BASE_FILE, CHAT_FORMAT

from . import verify

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge(adapter_dir, *, output_dir, base=None, max_shard_size="2048MB", dtype="auto", trust_base=False):
    """The folder `output_dir` with the merged model: weights, configs, tokenizer and code; returns the Difference.

    The base is the one the adapter names, or `base`; its fingerprint must be the one saved at training. The folder is
    written under another name, reloaded, its logits compared with base + adapter, and only then renamed.
    Raises FileExistsError if `output_dir` holds anything, ValueError for another base or differing logits, OSError.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir}: exists and is not empty; give a new folder")
    base = find_base(adapter_dir, base, trust_base)
    config = loading.load_config(base)
    tokenizer = loading.load_tokenizer(base, config)
    model = PeftModel.from_pretrained(loading.load_model(base, dtype=DTYPES[dtype]), adapter_dir)
    prompt = verify.picture_prompt(tokenizer, config)
    before = verify.logits(model, prompt)
    model = model.merge_and_unload(safe_merge=True)
    kept_dtype = model.lm_head.weight.dtype
    model.generation_config.chat_format = CHAT_FORMAT  # adapters are trained in it, whatever the base speaks
    staging = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        model.to(kept_dtype).save_pretrained(staging, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(staging)
        del model
        difference = verify.compare(before, verify.logits(loading.load_model(staging, dtype=kept_dtype), prompt))
        verify.check(difference, kept_dtype, f"{output_dir}: merged and base + adapter differ")
        if output_dir.exists():
            output_dir.rmdir()
        os.replace(staging, output_dir)
    except RuntimeError as error:  # how safetensors and torch report a full disk
        raise OSError(f"{output_dir}: could not be written ({error}); free some space and merge again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return difference


def find_base(adapter_dir, base, trust_base):
    """Path or hub name of the base of an adapter, its weights checked against the fingerprint saved at training.

    Raises FileNotFoundError where there is no adapter, ValueError where the base is not, or may not be, the right one.
    """
    adapter_dir = Path(adapter_dir)
    if not (adapter_dir / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{adapter_dir}: no adapter_config.json there; give the --output_dir of a LoRA training"
        )
    base = base or PeftConfig.from_pretrained(adapter_dir).base_model_name_or_path
    recorded = adapter_dir / BASE_FILE
    if not recorded.is_file():
        if trust_base:
            return base
        raise ValueError(
            f"{adapter_dir}: has no {BASE_FILE}, so nothing says that {base} is its base; "
            "pass --trust_base if you know that it is"
        )
    wanted = json.loads(recorded.read_text(encoding="utf-8"))["fingerprint"]
    found = loading.fingerprint(base)
    if found != wanted and not trust_base:
        raise ValueError(
            f"{base}: not the weights that {adapter_dir} was trained on "
            f"(fingerprint {found[:12]}, wanted {wanted[:12]}); give the right folder with --base"
        )
    return base


def main(argv=None):
    """Merge as the command line says and print where the result is."""
    parser = argparse.ArgumentParser(
        prog="merge_and_unload.py", description="Merge a LoRA adapter into its base: one standalone checkpoint."
    )
    parser.add_argument("adapter", help="folder of the trained adapter")
    parser.add_argument("output", help="folder to write; must not exist or be empty")
    parser.add_argument("--base", help="folder or hub name of the base, if it has moved since training")
    parser.add_argument("--max_shard_size", default="2048MB", help="largest weight file (default %(default)s)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="dtype of the result (default: the base's)")
    parser.add_argument("--trust_base", action="store_true", help="merge even if the base cannot be identified")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    difference = merge(
        args.adapter,
        output_dir=args.output,
        base=args.base,
        max_shard_size=args.max_shard_size,
        dtype=args.dtype,
        trust_base=args.trust_base,
    )
    print(f"base + adapter and merged model agree: {difference}", file=sys.stderr)
    print(f"merged model in {args.output}")
