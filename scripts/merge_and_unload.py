"""python scripts/merge_and_unload.py ADAPTER OUT [--max_shard_size 2048MB] [--dtype bfloat16]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

from qwen_vl.cli.merge import main
from qwen_vl.cli.run import run

if __name__ == "__main__":
    run(main)
