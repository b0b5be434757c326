"""scripts/full_size_check.py runs through, on a small configuration."""

import torch
from helpers import runs


def test_all_stages_on_a_small_model(tmp_path, capsys):
    script = runs.script("full_size_check")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        words = ["--config", str(runs.ROOT / "configs/model/tiny.json"), "--folder", str(tmp_path), "--in_process"]
        script.main([*words, "--out", str(tmp_path / "table.md")])
    finally:
        torch.set_num_threads(threads)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()[2:]}
    assert list(rows) == [title for title, *_ in script.STAGES.values()]
    assert "1,665,024 weights" in rows["write the bf16 checkpoint"]
    assert "largest logit difference" in rows["compare base + adapter and merged"]
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
