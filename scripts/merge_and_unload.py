"""python scripts/merge_and_unload.py ADAPTER OUT [--max_shard_size 2048MB] [--dtype bfloat16]"""

from qwen_vl.entry import run
from qwen_vl.export.merge import main

if __name__ == "__main__":
    run(main)
