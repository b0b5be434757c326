"""`qwen-vl plan`: memory and time of a training run before it starts."""

from collections.abc import Sequence

from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading, quantization
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenConfig
from qwen_vl.training.plan import memory_model
from qwen_vl.training.plan.planner import GIB, METHODS, assumed, check, default_zero, is_base, probed, report

from .parsers import Parser, add_hub, name_models, positive, positive_float


def make_parser() -> Parser:
    """Build the parser of `qwen-vl plan`."""
    parser = Parser(
        prog="qwen-vl plan",
        description="Memory and time of a training run from the configuration alone; docs/plan.md has the model.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", help="folder or hub name of a checkpoint (default: the published configuration, as a chat model)")
    add("--method", choices=METHODS, default="lora", help="how it trains (default: %(default)s)")
    add("--max_length", type=positive, default=2048, help="tokens of a sample (default: %(default)s)")
    add("--batch", type=positive, default=1, help="samples of a micro-batch on each GPU (default: %(default)s)")
    add("--accumulation", type=positive, default=8, help="micro-batches of a step (default: %(default)s)")
    add("--pictures", type=int, default=1, help="images of a sample (default: %(default)s)")
    add("--targets", type=float, default=0.25, help="share of the tokens that are targets (default: %(default)s)")
    add("--gpus", type=positive, default=1, help="GPUs (default: %(default)s)")
    add("--gpu_memory", type=positive_float, help="GiB of each GPU: says what fits, and how")
    add("--zero", type=int, choices=(0, 1, 2, 3), help="DeepSpeed stage (default with several GPUs: full 3, LoRA 2)")
    add("--offload", action="store_true", help="DeepSpeed keeps the optimizer in the memory of the machine")
    whole = " and ".join(family.WHOLE_ON_A_BASE)
    add("--base_model", action="store_true", help=f"LoRA also trains {whole}; known if --model is a folder")
    add("--train_vit", action="store_true", help="full training of the ViT as well (--fix_vit False)")
    add("--lora_r", type=positive, help=f"LoRA rank (default: {LoraOptions().r})")
    add("--no_checkpointing", action="store_true", help="without --gradient_checkpointing, which the launchers set")
    add("--attn_implementation", default="sdpa", help="sdpa, eager or flash_attention_2 (default: %(default)s)")
    add("--optim", default="adamw_torch_fused", help="optimizer, as in training (default: %(default)s)")
    add("--eval_generate", action="store_true", help="answers held-out questions as well, at each evaluation")
    add("--eval_generate_batch_size", type=positive, default=8, help="answers at a time (default: %(default)s)")
    add("--eval_generate_max_new_tokens", type=positive, default=256, help="of an answer (default: %(default)s)")
    add("--cpu", action="store_true", help="training on the CPU in float32: memory of the process")
    add("--probe", action="store_true", help="measure the machine at hand for some seconds instead of assuming an A100")
    add_hub(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan that the command line asks for, as Markdown."""
    args = make_parser().parse_args(argv)
    name_models(args, "model")
    config = QWenConfig() if args.model is None else loading.load_config(args.model)
    stored = quantization.kind_of(config, args.model)
    if stored and args.method != "qlora":
        raise ValueError(f"{args.model}: its weights are quantized; plan --method qlora, or another checkpoint")
    asked = memory_model.Setup(
        method=args.method,
        packing=stored or ("gptq" if args.model is None else "nf4"),
        length=args.max_length,
        batch=args.batch,
        accumulation=args.accumulation,
        images=args.pictures,
        targets=args.targets,
        half=not args.cpu,
        checkpointing=not args.no_checkpointing,
        attention=args.attn_implementation,
        optim=args.optim,
        zero=args.zero if args.zero is not None else default_zero(args.method, args.gpus),
        gpus=args.gpus,
        offload=args.offload,
        on_cpu=args.cpu,
        answers=args.eval_generate_batch_size if args.eval_generate else 0,
        new_tokens=args.eval_generate_max_new_tokens,
    )
    check(asked)
    if args.train_vit and args.method != "full":
        raise ValueError(f"--train_vit: goes with --method full; --method {args.method} freezes the ViT")
    if args.lora_r and args.method == "full":
        raise ValueError("--lora_r: goes with --method lora or qlora; --method full has no adapters")
    base_model = args.base_model or (args.model is not None and is_base(args.model))
    trained = memory_model.Trained(base_model, not args.train_vit, LoraOptions(r=args.lora_r or LoraOptions().r))
    machine = probed(config, asked.on_cpu) if args.probe else assumed(asked.on_cpu)
    budget = args.gpu_memory and args.gpu_memory * GIB
    print(report(config, asked, machine, budget, args.model, trained))
