"""The scripts that no other test runs, on small inputs."""

import json
import os
import re
import subprocess
import sys

import pytest
from runs import ROOT, script


def test_benchmark_data(make_checkpoint, tmp_path, capsys):
    """scripts/benchmark_data.py; without --model it builds configs/model/benchmark.json."""
    words = ["--samples", "6", "--records", "30", "--rounds", "1", "--out", str(tmp_path / "table.md")]
    script("benchmark_data").main(["--model", str(make_checkpoint()), *words])
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    for row in ("| packed |", "| padded to 2048 |", "| chatml.encode |", "the cache starts"):
        assert row in table
    assert (ROOT / "configs/model/benchmark.json").is_file()


def test_measure_streaming(capsys):
    """scripts/measure_streaming.py"""
    script("measure_streaming").main(["--records", "300", "--read", "100"])
    assert "MiB" in capsys.readouterr().out


def test_chat_with_folder(make_checkpoint, tmp_path):
    """scripts/chat_with_folder.py in a process that cannot import the package."""
    picture = ROOT / "tests/golden/images/rgb.png"
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/chat_with_folder.py",
            make_checkpoint(),
            picture,
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
    assert done.stdout.count("assistant:") == 2


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


def differences(table):
    """The percentages by which a table of scripts/profile_finetune.py says that the plan is off."""
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
    assert (tmp_path / "training.png").stat().st_size > 10_000
