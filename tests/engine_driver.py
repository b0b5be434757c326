"""Several runs of finetune.main in the same processes: torchrun .. tests/engine_driver.py RUNS.json.

RUNS.json: [[argument, ..], ..]. Starting processes costs more than these tiny runs. CHUNK_BYTES in the environment is
the size of the chunks into which the loss cuts its logits; with CUT_OFF the embeddings get no gradient.
"""

import json
import os
import sys
from pathlib import Path

from torch import nn
from torch.nn.modules.module import register_module_forward_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import finetune
from qwen_vl.cli.run import run
from qwen_vl.model import loss_qwen


def main(argv):
    """Run all command lines in the file argv[0]."""
    for arguments in json.loads(Path(argv[0]).read_text(encoding="utf-8")):
        finetune.main(arguments)


if __name__ == "__main__":
    loss_qwen.CHUNK_BYTES = int(os.environ.get("CHUNK_BYTES", loss_qwen.CHUNK_BYTES))
    if "CUT_OFF" in os.environ:
        register_module_forward_hook(lambda module, _, out: out.detach() if isinstance(module, nn.Embedding) else out)
    run(main)
