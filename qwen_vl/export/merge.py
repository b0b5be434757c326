"""An adapter and its base become one standalone checkpoint."""

import argparse
import os
import sys
from pathlib import Path

import torch
from peft import PeftConfig

from qwen_vl.training import loading, saving, tuning

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
    model = loading.load_model(base, dtype=DTYPES[dtype])
    kept_dtype = model.dtype
    model = tuning.load_adapters(model, adapter_dir)
    prompt = verify.picture_prompt(tokenizer, config)
    before = verify.logits(model, prompt)
    model = model.merge_and_unload(safe_merge=True)
    with saving.staged(output_dir.with_name(f".{output_dir.name}.partial"), output_dir) as staging:
        saving.write_folder(model.to(kept_dtype), tokenizer, staging, max_shard_size=max_shard_size)
        del model
        difference = verify.compare(before, verify.logits(loading.load_model(staging, dtype=kept_dtype), prompt))
        verify.check(difference, kept_dtype, f"{output_dir}: merged and base + adapter differ")
        if output_dir.exists():
            output_dir.rmdir()
        os.replace(staging, output_dir)
    return difference


def find_base(adapter_dir, base, trust_base):
    """Path or hub name of the base of an adapter, its weights checked against the fingerprint saved at training.

    Raises FileNotFoundError where there is no adapter, ValueError where the base is not, or may not be, the right one.
    """
    recorded = saving.recorded_base(adapter_dir)
    base = base or (recorded or {}).get("name") or PeftConfig.from_pretrained(adapter_dir).base_model_name_or_path
    if trust_base:
        return base
    if recorded is None:
        raise ValueError(
            f"{adapter_dir}: has no {saving.BASE_FILE}, so nothing says that {base} is its base; "
            "pass --trust_base if you know that it is"
        )
    try:
        found = loading.fingerprint(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the base of {adapter_dir}: {error}; if it has moved, give it with --base") from error
    saving.check_base(adapter_dir, base, found)
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
    loading.quiet_libraries()
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
