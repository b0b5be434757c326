"""Runs of finetune.main, one after another in the same processes: torchrun .. tests/engine_driver.py RUNS.json.

RUNS.json: [[argument, ..], ..]. Starting processes costs more than these tiny runs.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import finetune

if __name__ == "__main__":
    for argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        finetune.main(argv)
