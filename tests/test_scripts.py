"""The scripts that no other test runs, on small inputs."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import runs
from helpers.drawings import Drawing, panels_of
from helpers.runs import ROOT, script


def test_benchmark_data(make_checkpoint, tmp_path, capsys):
    """scripts/benchmark_data.py; without --model it builds configs/model/benchmark.json."""
    words = ["--samples", "6", "--records", "30", "--rounds", "1", "--out", str(tmp_path / "table.md")]
    script("benchmark_data").main(["--model", str(make_checkpoint()), *words])
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    for row in ("| packed |", "| padded to 2048 |", "| chatml.encode |", "the cache starts"):
        assert row in table
    assert (ROOT / "configs/model/benchmark.json").is_file()


def test_benchmark_serving(make_checkpoint, tmp_path, capsys):
    """scripts/benchmark_serving.py; without --model it builds models of configs/model."""
    benchmark = script("benchmark_serving")
    benchmark.main(["--model", str(make_checkpoint()), "--quick", "--out", str(tmp_path / "table.md")])
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == 5 and all("at least" in line or "at most" in line for line in lines)
    assert "all 3 answers equal" in lines[0] and "MiB after 8" in lines[4]
    assert all(config.is_file() for config in benchmark.CONFIGS)


def test_measure_streaming(capsys):
    """scripts/measure_streaming.py"""
    script("measure_streaming").main(["--records", "300", "--read", "100"])
    assert "memory grew by" in capsys.readouterr().out


@pytest.mark.parametrize(("used", "fits"), [((400, 464, 300), True), ((400, 465, 400), False), ((400, 900), False)])
def test_measure_streaming_fails_beyond_its_bound(monkeypatch, used, fits):
    streaming = script("measure_streaming")
    monkeypatch.setattr(streaming, "measure", lambda path, num_read: enumerate(used))
    words = ["--records", "1", "--bound", "64"]
    if fits:
        streaming.main(words)
    else:
        with pytest.raises(SystemExit, match=f"grew by {max(used) - used[0]} MiB") as ended:
            streaming.main(words)
        assert ended.value.code not in (0, None)


def test_chat_with_folder(make_checkpoint, tmp_path):
    """scripts/chat_with_folder.py in a process that cannot import the package."""
    image = ROOT / "tests/golden/images/rgb.png"
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/chat_with_folder.py",
            make_checkpoint(),
            image,
            tmp_path / "b.png",
            "hi",
            "a?",
        ],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("assistant:") == 2 and not runs.noise(done.stderr)


def test_benchmark_threads(tmp_path, monkeypatch, capsys):
    """scripts/benchmark_threads.py with runs that are only written down; a slow test measures real ones."""
    benchmark = script("benchmark_threads")
    clock = iter(range(110, 10_000, 10))
    monkeypatch.setattr(benchmark.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(benchmark.time, "time", lambda: next(clock))
    running = [SimpleNamespace(poll=lambda: None) for _ in range(2)]
    outs = [tmp_path / "0", tmp_path / "1"]
    for out, ends in zip(outs, [(101, 125, 130, 131), (105, 121)], strict=True):
        out.mkdir()
        lines = [{"step": 1, "time": end, "tokens_per_second": 40.0, "step_seconds": 5.0, "loss": 1.0} for end in ends]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 2, "time": 126, "train_runtime": 3}])
        (out / "metrics.jsonl").write_text(text + '{"step": 3, "ti')
    assert benchmark.rates(list(zip(running, outs, strict=True)), 10) == [40.0, 20.0]  # from 120 to 130
    monkeypatch.undo()
    (tmp_path / "0" / "said.txt").write_text("step 1\nerror: no such model\n")
    with pytest.raises(ValueError, match="no such model"):
        benchmark.check([(SimpleNamespace(poll=lambda: 1), tmp_path / "0")])

    found = iter([8000.0, 0.0, 100.0, 6000.0, 2300.0, 900.0])
    monkeypatch.setattr(benchmark, "build", lambda folder, images: None)
    monkeypatch.setattr(benchmark, "measure", lambda *words: next(found))
    benchmark.main(["--settings", "GOMP_SPINCOUNT=300000", "OMP_WAIT_POLICY=passive", "--out", str(tmp_path / "t.md")])
    table = (tmp_path / "t.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert "| `GOMP_SPINCOUNT=300000`, the default of libgomp | 8,000 (1.00x) | 0 | 100 (1.00x) |" in table
    assert "| `OMP_WAIT_POLICY=passive` | 6,000 (0.75x) | 2,300 | 900 (9.00x) |" in table
    with pytest.raises(SystemExit):
        benchmark.main(["--settings", "passive"])


@pytest.mark.slow
def test_benchmark_threads_measures_trainings(capsys):
    script("benchmark_threads").main(["--seconds", "3", "--settings", "OMP_WAIT_POLICY=passive"])
    assert re.search(r"passive` \| [1-9][\d,]* \(1.00x\) \| [1-9]", capsys.readouterr().out)


def test_profile_generate(make_checkpoint, tmp_path, capsys):
    """scripts/profile_generate.py; without --model it builds configs/model/benchmark.json."""
    words = ["--lengths", "40", "64", "--rounds", "1", "--out", str(tmp_path / "table.md")]
    script("profile_generate").main(["--model", str(make_checkpoint()), *words])
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    for row in ("| 40 | ", "| 64 | ", "| cache written in place", "with a memory against without | "):
        assert row in table
    with pytest.raises(ValueError, match="26 tokens at least"):
        script("profile_generate").main(["--model", str(make_checkpoint()), "--lengths", "20"])


def test_benchmark_evaluation(make_checkpoint, tmp_path, capsys):
    """scripts/benchmark_evaluation.py, in small; it checks that the answers are the same."""
    benchmark = script("benchmark_evaluation")
    benchmark.main(["--quick", "--model", str(make_checkpoint()), "--out", str(tmp_path / "table.md")])
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    for row in (
        "| answers, 30 questions an image, against one by one | ",
        "| ranking of 4 options, 1 question an image",
    ):
        assert row in table
    assert re.search(r"\| VQA accuracy of 2,000 answers \| [\d.]+ \|", table) and "| CIDEr of 50 captions" in table
    benchmark.check(["a"], ["a"], True)
    for ours, theirs in ((["a"], ["b"]), ([(1.0, 2.0)], [[1.0, 2.1]])):
        benchmark.check(ours, theirs, False)
        with pytest.raises(RuntimeError, match="differ"):
            benchmark.check(ours, theirs, True)


def differences(table):
    """Return the percentages by which a table of scripts/profile_finetune.py says that the plan is off."""
    return [int(number) for number in re.findall(r"planned [\d.]+, ([+-]\d+)%", table)]


def test_profile_finetune_measures_what_is_planned(tmp_path, capsys):
    """scripts/profile_finetune.py: the peak memory of a real process, planned within 15%."""
    words = ["--cpu", "--ways", "LoRA (base)", "--lengths", "384", "--accumulation", "1", "--steps", "1"]
    script("profile_finetune").main([*words, "--out", str(tmp_path / "table.md")])
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out and "| LoRA (base) | " in table
    assert len(differences(table)) == 1 and abs(differences(table)[0]) <= 15, table


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--ways", "full", "LoRA (chat)", "--lengths", "384", "2048"],
        ["--ways", "full", "LoRA (chat)", "LoRA (base)", "--lengths", "1024", "--no_checkpointing"],
        ["--ways", "full", "LoRA (base)", "--lengths", "512", "--accumulation", "2"],
    ],
    ids=["checkpointing", "no checkpointing", "accumulation"],
)
def test_plans_of_larger_runs_are_right(words, tmp_path, capsys):
    """A model of hidden size 1024 with 32,000 words: peak resident memory within 15% of the plan in each cell."""
    settings = json.loads((ROOT / "configs/model/benchmark.json").read_text(encoding="utf-8"))
    settings |= {"hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8, "kv_channels": 128}
    settings |= {"intermediate_size": 5504, "vocab_size": 32000}
    vision = {"image_size": 224, "width": 256, "layers": 4, "heads": 4, "output_dim": 1024, "n_queries": 64}
    settings["visual"] |= vision | {"image_start_id": 31997}
    (tmp_path / "medium.json").write_text(json.dumps(settings), encoding="utf-8")
    words = [*words, "--accumulation", "1"] if "--accumulation" not in words else words
    script("profile_finetune").main(["--cpu", "--config", str(tmp_path / "medium.json"), *words, "--debug"])
    table = capsys.readouterr().out
    assert len(differences(table)) >= 2 and max(map(abs, differences(table))) <= 15, table


def test_the_tower_of_the_benchmark_costs_what_the_published_one_does():
    """Beside its decoder, in operations; see scripts/benchmark_training.py."""
    _, reached, wanted = script("benchmark_training").published_ratio_tower(256)
    assert reached == pytest.approx(wanted, rel=0.15)


@pytest.mark.slow
def test_benchmark_training(tmp_path, capsys):
    """scripts/benchmark_training.py, all of it in small."""
    script("benchmark_training").main(["--quick", "--out", str(tmp_path)])
    text = (tmp_path / "training.md").read_text(encoding="utf-8")
    assert text.strip() in capsys.readouterr().out
    for row in (
        "| small | full | 512 |",
        "| model | trainer adds | MFU |",
        "Second epoch from the vision cache",
        "| 300 |",
    ):
        assert row in text
    drawn = panels_of((tmp_path / "training.svg").read_text(encoding="utf-8"))
    assert [title.split(",")[0] for title, _ in drawn] == ["Tokens a second", "Peak memory", "Start"]
    assert [len(Drawing(root).rects()) for _, root in drawn] == [1, 3, 0] and len(Drawing(drawn[2][1]).dots) == 4


def test_the_chart_of_the_document_shows_its_tables(monkeypatch):
    """docs/training.svg, byte for byte, from the two tables in docs/speed.md."""
    text = (ROOT / "docs/speed.md").read_text(encoding="utf-8")

    def rows(head):
        lines = text.partition(head)[2].partition("\n\n")[0].splitlines()[2:]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    def number(cell):
        return float(cell.rstrip("x").replace(",", ""))

    throughput = [
        [size, method, int(length), *map(number, rest)]
        for size, method, length, *rest in rows("| model | method | length |")
    ]
    memory = [
        [*name.split(", "), number(a), number(b), number(c)] for name, a, b, _, c in rows("| peak memory at 2048")
    ]
    assert (len(throughput), len(memory)) == (9, 4)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    svg = script("training_report").svg({"throughput": throughput, "memory": memory, "start": []})
    assert svg == (ROOT / "docs/training.svg").read_text(encoding="utf-8")
