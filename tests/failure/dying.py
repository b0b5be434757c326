"""finetune.py, but at the rank and step in $DIES ("1:3") it kills itself, unless torchrun has started it again."""

import os
import sys

import warm

import finetune

if __name__ == "__main__":
    rank, step = os.environ["DIES"].split(":")
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == rank:
        warm.arm({"step": int(step), "do": "SIGKILL"}, None)
    finetune.run(finetune.main, sys.argv[1:])
