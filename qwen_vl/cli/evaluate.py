"""`qwen-vl evaluate MODEL ..`: benchmarks and held-out data answered, scored and reported."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qwen_vl.adapters import inference
from qwen_vl.evaluation import report, server, suite
from qwen_vl.evaluation.answering import LocalModel, identify
from qwen_vl.evaluation.benchmarks import BENCHMARKS
from qwen_vl.evaluation.benchmarks.benchmark import size_mark
from qwen_vl.evaluation.judge import Judge
from qwen_vl.evaluation.openai_protocol import Endpoint
from qwen_vl.evaluation.processes import Processes
from qwen_vl.evaluation.records import Ranking
from qwen_vl.evaluation.results import JUDGE
from qwen_vl.evaluation.runner import ModelSource
from qwen_vl.evaluation.scoring import OFFICIAL, VARIANTS
from qwen_vl.evaluation.suite import Request
from qwen_vl.evaluation.tasks import Overrides, Subset, changed
from qwen_vl.evaluation.worst import NUM_WORST
from qwen_vl.terminal import text_table

from . import evaluate_compare
from .parsers import DEBUG, Parser, add_hub, add_loading, name_models, positive

STAGES = ("answer", "score", "report")
COMPARE = "compare"  # the verb below this one
MEETING_SECONDS = 600.0
WAITING_SECONDS = 7 * 24 * 3600  # the first process may score, with a judge, while the others wait


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says."""
    words = list(sys.argv[1:] if argv is None else argv)
    if [word for word in words if word != DEBUG][:1] == [COMPARE]:
        words.remove(COMPARE)
        evaluate_compare.main(words)
        return
    args = make_parser().parse_args(words)
    name_models(args, "models", "base")
    if args.list:
        print_registry()
        return
    check_flags(args)
    evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    """Do the stages that the flags ask for. Everything that can be checked is checked before a model is loaded."""
    request = make_request(args)
    if args.check:
        for mark in suite.check(request):
            print(mark)
        print(f"{len(request.benchmarks())} benchmarks: all files are there")
        return
    connect_processes(args)
    processes, stages = Processes.current(), (args.stage,) if args.stage else STAGES
    say: Callable[[str], None] = partial(print, file=sys.stderr, flush=True) if processes.is_first else (lambda _: None)
    results_dir, folders = Path(args.output_dir), None
    if "answer" in stages:
        tasks = processes.together(lambda: suite.tasks_of(request, problems_of(args, request, stages)))
        models = [partial(find_model, path, args) for path in args.models]
        try:
            folders = suite.answer_all(tasks, models, results_dir, batch_size=args.batch_size, report=say)
        except KeyboardInterrupt:
            say(f"{results_dir} keeps the answers of all finished batches; run the same command again to go on")
            raise
    processes.together(partial(score_and_report, args, stages, folders), first_only=True)


def score_and_report(args: argparse.Namespace, stages: Sequence[str], folders: Sequence[Path] | None) -> None:
    """Do the stages that need no model, in one process."""
    results_dir = Path(args.output_dir)
    if "score" in stages:
        judge = make_judge(args, results_dir)
        options = {"variant": args.variant, "judge": judge, "num_worst": args.worst}
        for scores in suite.score_all(results_dir, make_request(args), folders=folders, **options):
            print(score_line(scores), flush=True)
    if "report" in stages:
        for path in report.write(results_dir):
            print(f"report: {path}", file=sys.stderr)


def problems_of(args: argparse.Namespace, request: Request, stages: Sequence[str]) -> list[str]:
    """Return what is wrong with models and judge for the benchmarks of a request, as far as no model must be loaded."""
    asked = request.benchmarks()
    raw = [benchmark.name for benchmark in asked if changed(benchmark, request.overrides).style == "raw"]
    problems = [server.raw_problem(model, raw) for model in args.models if is_address(model) and raw]
    if "score" in stages and make_judge(args, Path(args.output_dir)) is None:
        problems += [suite.judge_problem(benchmark.name) for benchmark in asked if benchmark.metric.needs_judge]
    return problems


def make_request(args: argparse.Namespace) -> Request:
    """Return the flags as a Request of the suite."""
    overrides = Overrides(
        style=args.style,
        template=args.template,
        kind="rank" if args.rank else "generate" if args.generate else None,
        max_new_tokens=args.max_new_tokens,
        min_new_tokens=args.min_new_tokens,
        end=args.end,
        shots=args.shots,
    )
    return Request(
        names=tuple(args.benchmarks),
        data=tuple(args.data),
        data_dir=Path(args.data_dir),
        image_folder=args.image_folder,
        num_frames=args.frames,
        overrides=overrides,
        subset=Subset(args.limit, args.offset, args.seed),
    )


def find_model(path: str, args: argparse.Namespace) -> ModelSource:
    """Return a model folder or hub name, read but not loaded, or the model behind an address."""
    if is_address(path):
        model = server.ServerModel.connect(Endpoint.at(path, args.api_key), args.server_model, label=args.label)
        return ModelSource(model.identity, lambda: model)
    options = {"dtype": args.dtype, "base": args.base, "trust_base": args.trust_base}
    identity = Processes.current().together(lambda: identify(path, **options), first_only=True)
    device = args.device
    if device in (None, "cuda") and "LOCAL_RANK" in os.environ and not uses_cpu(args):
        device = f"cuda:{os.environ['LOCAL_RANK']}"

    def load() -> LocalModel:
        return LocalModel(*inference.load(path, device=device, **options), identity)

    return ModelSource(replace(identity, label=args.label or identity.label), load)


def make_judge(args: argparse.Namespace, results_dir: Path) -> Judge | None:
    """Return the judge of the flags and the environment, None if neither names one."""
    address = args.judge_url or os.environ.get("OPENAI_BASE_URL")
    if not address or not args.judge_model:
        return None
    endpoint = Endpoint.at(address, args.judge_key or os.environ.get("OPENAI_API_KEY"))
    return Judge(endpoint, args.judge_model, results_dir / JUDGE)


def connect_processes(args: argparse.Namespace) -> None:
    """Initialize torch.distributed if torchrun started several processes."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from qwen_vl.training.distributed import engines

        engines.initialize(use_cpu=uses_cpu(args), timeout=MEETING_SECONDS, ddp_timeout=WAITING_SECONDS)


def uses_cpu(args: argparse.Namespace) -> bool:
    """Return whether the processes compute on the CPU."""
    return args.device == "cpu" or torch.accelerator.current_accelerator(check_available=True) is None


def is_address(model: str) -> bool:
    """Return whether a model is one behind an address."""
    return model.startswith(("http://", "https://"))


def score_line(scores: dict[str, Any]) -> str:
    """Return the headline of a scored run for people, with its marks."""
    figure = scores["figures"].get(scores["headline"])
    if figure is None:
        text = "; ".join(scores["notes"])
    else:
        sign = "%" if figure["unit"] == "percent" else ""
        reach = "" if figure["low"] is None else f" (95%: {figure['low']:.2f} to {figure['high']:.2f})"
        text = f"{scores['headline']} {figure['value']:.2f}{sign}{reach}"
    counts = scores["counts"]
    marks = [f"subset of {counts['records']} records"] if scores["subset"] else []
    marks += [f"incomplete: {counts['unanswered']} of {counts['records']} unanswered"] if scores["incomplete"] else []
    mark = size_mark(scores["settings"].get("complete_size"), scores["size"])
    marks += [mark] if mark else []
    return f"{scores['model']}: {scores['run']}: {text}" + "".join(f" [{mark}]" for mark in marks)


def print_registry() -> None:
    """Print all benchmarks, and what each needs."""
    rows = [("name", "records", "prompt", "answer", "metric", "files in --data_dir")]
    for name, benchmark in BENCHMARKS.items():
        if benchmark.parts:
            rows.append((name, "", "", "", "mean", f"those of {', '.join(benchmark.parts)}"))
            continue
        files = ", ".join(file.path + " (optional)" * file.optional for file in benchmark.files.values())
        answer = "ranked" if isinstance(benchmark.decoding, Ranking) else "generated"
        size = "" if benchmark.size is None else f"{benchmark.size:,}"
        prompt = f"{benchmark.style} {benchmark.template}"
        rows.append((name, size, prompt, answer, benchmark.metric.name, files))
    print("\n".join(text_table(rows)))


def check_flags(args: argparse.Namespace) -> None:
    """Raise ValueError with all flags that are missing or contradict each other."""
    answers = args.stage in (None, "answer")
    wrong = []
    if answers and not args.check and not args.models:
        wrong.append("name a model: a folder, a hub name, or the address of a server")
    if (answers or args.check) and not args.benchmarks and not args.data:
        wrong.append("name benchmarks (--benchmarks; --list shows them) or a conversation file (--data)")
    if not answers and args.models:
        wrong.append(f"--stage {args.stage} needs no model, and takes all that is in --output_dir: name none")
    if args.rank and args.generate:
        wrong.append("--rank and --generate: choose one")
    if args.label and len(args.models) > 1:
        wrong.append("--label: goes with one model")
    for flag in ("offset", "shots", "min_new_tokens", "worst"):
        if (getattr(args, flag) or 0) < 0:
            wrong.append(f"--{flag} {getattr(args, flag)}: use a number from 0")
    if wrong:
        raise ValueError("; ".join(wrong))


def make_parser() -> Parser:
    """Build the parser of `qwen-vl evaluate`."""
    parser = Parser(
        prog="qwen-vl evaluate",
        description="Evaluate Qwen-VL checkpoints on benchmarks and held-out data: answer, score, report.",
        epilog=f"`qwen-vl evaluate {COMPARE} A B` compares two runs on the same records.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="folder, hub name, adapter, Int4 model, or http:// of a server")
    add("--benchmarks", nargs="+", default=[], metavar="NAME", help="benchmarks; --list shows them")
    add("--data", nargs="+", default=[], metavar="FILE", help="conversation files, whose last answers are right")
    add("--image_folder", help="where relative image paths of --data are looked up as well")
    add("--data_dir", default="eval_data", help="folder of the benchmarks' files (default %(default)s)")
    add("--output_dir", default="results", help="folder of answers, scores and report (default %(default)s)")
    add("--stage", choices=STAGES, help="only this one; score and report need no model (default: all three)")
    add("--list", action="store_true", help="show all benchmarks and what each needs")
    worst_help = "worst samples of each run that the report shows; chosen when answers are scored (default %(default)s)"
    add("--worst", type=int, default=NUM_WORST, metavar="N", help=worst_help)
    add("--check", action="store_true", help="say which files are missing or malformed, and how to obtain them")
    add_what_is_asked(parser)
    add_model_and_services(parser)
    add_hub(parser)
    return parser


def add_what_is_asked(parser: Parser) -> None:
    """Add the flags that decide which records are asked, how, and how they are scored."""
    group = parser.add_argument_group("what is asked", "All of it is written into the results.")
    add = group.add_argument
    add("--limit", type=positive, help="a seeded random subset of so many records")
    add("--offset", type=int, default=0, help="leave out the first records of the random order")
    add("--seed", type=int, default=0, help="seed of the random order and of few-shot examples (default %(default)s)")
    add("--style", choices=("raw", "chat"), help="prompt as a raw text or as a chat (default: the benchmark's)")
    add("--template", help="text with <img>{image}</img>, {question} .., or the name of a template")
    add("--shots", type=int, help="training examples before each question")
    add("--frames", type=positive, help="frames of each clip, where a benchmark has clips (default: 4)")
    add("--max_new_tokens", type=positive, help="most tokens of a generated answer")
    add("--min_new_tokens", type=int, help="fewest tokens of a generated answer")
    add("--end", choices=("endoftext", "im_end"), help="where a generated answer ends")
    add("--rank", action="store_true", help="choose options by likelihood")
    add("--generate", action="store_true", help="let the model write its choice of an option")
    add("--variant", choices=VARIANTS, default=OFFICIAL, help="which figure is the headline (default %(default)s)")


def add_model_and_services(parser: Parser) -> None:
    """Add the flags about loading a model, about a server and about a judge."""
    group = parser.add_argument_group("model, server, judge")
    add = group.add_argument
    add("--batch_size", type=positive, default=32, help="answers in one batch, or requests at a time (%(default)s)")
    add_loading(group)
    add("--label", help="what the model is called in the results (default: its folder's name)")
    add("--api_key", help="key of a server that is evaluated")
    add("--server_model", help="model of a server that has several")
    add("--judge_url", help="address of a judge (OpenAI protocol; default: OPENAI_BASE_URL of the environment)")
    add("--judge_model", help="model that judges")
    add("--judge_key", help="key of the judge (default: OPENAI_API_KEY of the environment)")
