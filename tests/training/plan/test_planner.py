"""The plan: parameter counts, the published table, what fits, and commands that exist."""

import json
import re
from pathlib import Path

import pytest
from helpers import runs

from qwen_vl.cli import main
from qwen_vl.model import QWenConfig
from qwen_vl.training.plan import memory_model, planner

ROOT = Path(__file__).resolve().parents[3]


def planned(setup, config=None, **options):
    config = config or QWenConfig()
    weights = memory_model.weigh(config, setup, memory_model.Trained(**options))
    return planner.need(config, setup, planner.Machine(), weights)


def test_the_model_explains_what_was_published(capsys):
    """Check scripts/published_memory.py: twelve cells within 5%, as README states, and all tables of docs/plan.md."""
    published = runs.script("published_memory")
    published.main([])
    memory_table, time_table = capsys.readouterr().out.strip().split("\n\n")
    differences = [float(number) for number in re.findall(r"\(([+-][\d.]+)%\)", memory_table)]
    assert len(differences) == 12 and max(map(abs, differences)) < 5, memory_table
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/training.md", "docs/plan.md"))
    assert memory_table in page
    for name, row in {"LoRA (chat)": "the reference, as published: LoRA, chat", "LoRA (base)": "LoRA, base"}.items():
        assert f"| *{row}* | {' | '.join(f'{size} GB' for size in published.PUBLISHED_GB[name])} |" in readme
    assert f"| *Q-LoRA* | {' | '.join(f'{size} GB' for size in published.PUBLISHED_GB['Q-LoRA'])} |" in readme
    lora, _, qlora = (re.findall(r"\(([\d.]+) times\)", line) for line in time_table.splitlines()[2:])
    times = "{3}, {2}, {1} and {0}".format(*lora)
    told = f"the published LoRA runs took {times} times the planned time at 2048, 1024, 512 and 384 tokens, Q-LoRA"
    assert f"{told} {qlora[-1]} to {qlora[0]} times" in " ".join(page.split())


def test_the_documents_show_what_is_planned():
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {
        "LoRA on a chat model": (memory_model.Setup(method="lora"), {}),
        "LoRA on a base model": (memory_model.Setup(method="lora"), {"base_model": True}),
        "Q-LoRA": (memory_model.Setup(method="qlora"), {}),
        "full, 8 GPUs, ZeRO-3": (memory_model.Setup(method="full", gpus=8, zero=3), {}),
    }
    for name, (setup, options) in rows.items():
        cells = [f"{planned(setup._replace(length=n), **options).total / 1e9:.1f} GB" for n in planner.LENGTHS]
        assert f"| {name} | {' | '.join(cells)} |" in text, cells
        assert re.search(rf"^\| {name} \|.*\| {cells[1]} \| {cells[3]} \|$", readme, re.MULTILINE), cells


def test_what_must_cost_more_does():
    base = memory_model.Setup(method="lora")
    assert planned(base._replace(length=4096)).total > planned(base).total
    assert planned(base._replace(checkpointing=False)).total > planned(base).total
    assert planned(base, base_model=True).total > planned(base).total
    assert planned(base._replace(attention="eager")).total > planned(base).total
    assert (
        planned(base._replace(method="qlora")).total < planned(base).total < planned(base._replace(method="full")).total
    )
    many = memory_model.Setup(method="full", gpus=8)
    totals = [planned(many._replace(zero=stage)).total for stage in (0, 1, 2, 3)]
    assert totals == sorted(totals, reverse=True)
    assert planned(many._replace(zero=3, offload=True)).total < totals[-1]
    assert planned(base._replace(targets=1.0)).seconds > planned(base).seconds
    for setup in (base, many._replace(zero=3)):
        found = planned(setup)
        assert found.total == pytest.approx(sum(found.parts.values())) and min(found.parts.values()) >= 0


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--gpu_memory 24", "It fits 24 GiB"),
        ("--method full --gpus 8 --gpu_memory 24", "NPROC=8 sh finetune/finetune_ds.sh"),
        ("--method full --gpus 4 --gpu_memory 24", "zero3_offload.json"),
        ("--method full --gpu_memory 20", "finetune_qlora_single_gpu.sh -m Qwen/Qwen-VL-Chat-Int4"),
        ("--method full --gpu_memory 2", "Nothing here does"),
        (
            "--gpu_memory 24 --eval_generate",
            "--eval_generate True --eval_generate_batch_size 1",
        ),
        ("--gpu_memory 16 --zero 2 --gpus 8", "NPROC=8 sh finetune/finetune_lora_ds.sh"),
    ],
)
def test_what_fits_and_the_command_for_it(words, expected, capsys):
    main.main(["plan", *words.split()])
    shown = capsys.readouterr().out
    assert expected in shown, shown
    for path in re.findall(r"(?:finetune|configs)/[\w./]+", shown):
        assert (ROOT / path).is_file(), path
    assert "| full" in shown and "| qlora" in shown and "2048 tokens" in shown


def test_quantized_checkpoints_are_planned_as_they_are_stored(make_checkpoint, tmp_path, capsys):
    settings = json.loads((make_checkpoint() / "config.json").read_text(encoding="utf-8"))
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    main.main(["plan", "--model", str(tmp_path), "--method", "qlora"])
    assert f"finetune_qlora_single_gpu.sh -m {tmp_path}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="weights are quantized"):
        main.main(["plan", "--model", str(tmp_path)])
    setup = memory_model.Setup(method="qlora")
    sizes = [planned(setup._replace(packing=kind)).parts["weights"] for kind in ("nf4", "gptq", "int8")]
    assert sizes == sorted(set(sizes))


def test_a_plan_reads_a_folder_and_refuses_contradictions(make_checkpoint, capsys):
    main.main(["plan", "--model", str(make_checkpoint("raw")), "--cpu", "--max_length", "128", "--probe"])
    shown = capsys.readouterr().out
    assert "measured on cpu" in shown and "--use_cpu True" in shown and "| process |" in shown
    for words in ("--offload", "--cpu --zero 2", "--cpu --method qlora", "--method qlora --zero 3", "--targets 2"):
        with pytest.raises(SystemExit) as end:
            main.entry(["plan", *words.split()])
        assert end.value.code == 1


@pytest.mark.parametrize(
    "words, flags",
    [
        (["--lora_r", "8"], ["--lora_r", "8"]),
        (["--base_model"], ["--modules_to_save", "wte", "lm_head"]),
        (["--method", "full", "--train_vit"], ["--fix_vit", "False"]),
        ([], []),
    ],
)
def test_the_command_trains_what_was_planned(words, flags, capsys):
    main.entry(["plan", "--gpu_memory", "2000", *words])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    sh finetune/")]
    assert line.split()[6:] == flags


@pytest.mark.parametrize("words", [["--train_vit"], ["--method", "full", "--lora_r", "8"]])
def test_flags_of_another_method_are_refused(words):
    with pytest.raises(ValueError, match="goes with --method"):
        main.entry(["plan", *words, "--debug"])
