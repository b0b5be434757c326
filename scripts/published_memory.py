"""python scripts/published_memory.py

Compare the model behind `qwen-vl plan` with the profile that the Qwen-VL authors published, as Markdown: memory and
seconds a step of LoRA on a base model, LoRA on a chat model and Q-LoRA on one A100 with 80 GB, with batch 1,
accumulation 8 and one image in each sample. Constants and formulas are the planner's. The differences of the authors'
program are modeled here. No weights are read.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

from qwen_vl.cli.run import run
from qwen_vl.families import v1_costs as costs
from qwen_vl.model import QWenConfig
from qwen_vl.terminal import markdown_table
from qwen_vl.training.plan import memory_model, planner
from qwen_vl.training.plan.memory_model import Setup, Weights

LENGTHS = (384, 512, 1024, 2048)
# docs/checkpoint_format.md section 7, at LENGTHS
PUBLISHED_GB = {
    "LoRA (base)": (37.1, 37.3, 38.7, 38.7),
    "LoRA (chat)": (23.3, 23.6, 25.1, 27.3),
    "Q-LoRA": (17.0, 17.2, 18.2, 19.3),
}
PUBLISHED_SECONDS = {
    "LoRA (base)": (2.3, 2.4, 3.6, 6.1),
    "LoRA (chat)": (2.2, 2.3, 3.5, 5.9),
    "Q-LoRA": (4.2, 4.5, 5.5, 7.9),
}
BUCKET = 2e8  # elements of DeepSpeed's reduce and allgather buckets in the authors' settings
LOGIT_COPIES = 3  # at the peak of the loss: the saved log-softmax and two gradients, as large as the logits


def setup_of(row: str) -> Setup:
    """Return how a row of the profile trains: eager attention, all logits, Q-LoRA under DeepSpeed ZeRO-2."""
    many = {"method": "qlora", "zero": 2} if row == "Q-LoRA" else {"method": "lora"}
    return Setup(attention="eager", optim="adamw_torch", targets=1.0, **many)


def weigh(config: QWenConfig, row: str, setup: Setup) -> Weights:
    """Return the Weights of a row's model; copies of wte and lm_head train in bfloat16, only adapters in float32."""
    model = memory_model.prepared(
        config, setup.method, half=True, trained=memory_model.Trained(base_model="base" in row)
    )
    return memory_model.weights_of(model, setup.method, setup.packing)


def peak(config: QWenConfig, weights: Weights, setup: Setup) -> float:
    """Return the bytes of the largest phase: `memory_model.phases` with the differences of the authors' program."""
    positions, fixed = setup.batch * setup.length, memory_model.standing(config, weights, setup)
    if setup.zero == 2:
        buckets = [memory_model.bucket_bytes(weights.parameters, size, 2) for size in (config.hidden_size**2, BUCKET)]
        fixed["gradients"] += buckets[1] - buckets[0]
    # Residuals stay in half precision, also where wte trains, as wte is not float32.
    kept, working = memory_model.activations(config, weights._replace(parts=()), setup)
    # The two norms compute in float32, and the activation of a branch is kept beside both branches.
    working += positions * (2 * config.hidden_size * 4 + costs.mlp_width(config) * 2)
    logits = positions * config.vocab_size * LOGIT_COPIES * (4.0 if memory_model.autocasts(setup) else 2.0)
    # AdamW of torch 2.0 also keeps the sum of its root and epsilon, for all tensors of a dtype at once.
    step = 2 * memory_model.step_bytes(weights, setup)
    phases = (
        fixed | {"vision tower": memory_model.vision_bytes(config, weights, setup)},
        fixed | {"activations": kept, "logits": logits},
        fixed | {"activations": kept + working},
        fixed | {"optimizer step": step},
    )
    return max(sum(memory_model.with_overhead(parts, setup).values()) for parts in phases)


def tables(config: QWenConfig) -> str:
    """Return the tables of memory and of time: planned, published, and their difference."""
    head, sizes, times = ["", *(f"{length} tokens" for length in LENGTHS)], [], []
    for row in PUBLISHED_GB:
        setup, cells, paces = setup_of(row), [], []
        weights = weigh(config, row, setup)
        for length, size, time in zip(LENGTHS, PUBLISHED_GB[row], PUBLISHED_SECONDS[row], strict=True):
            setup = setup._replace(length=length)
            planned = peak(config, weights, setup) / planner.GB
            cells.append(f"{planned:.1f} GB, published {size} ({planned / size - 1:+.1%})")
            seconds = planner.seconds(config, weights, setup, planner.Machine())
            paces.append(f"{seconds:.2g} s, published {time} ({time / seconds:.2g} times)")
        sizes.append([row, *cells])
        times.append([row, *paces])
    return f"{markdown_table(head, sizes)}\n\n{markdown_table(head, times)}"


def main(argv: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1], allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.parse_args(argv)
    print(tables(QWenConfig()))


if __name__ == "__main__":
    run(main)
