"""--skip_manifest: a run trains on all other records, and rejects a manifest that does not fit."""

import json

import pytest
from helpers import runs

from qwen_vl.data.skip_manifests import write_manifest


def test_a_run_with_a_manifest_is_one_on_the_cleaned_file(make_checkpoint, tmp_path, capsys, caplog):
    model, bad = make_checkpoint(), {"[1]": ("sample-1", ["x"]), "[4]": ("sample-4", ["x"])}
    (tmp_path / "clean").mkdir()
    clean = runs.write_data(tmp_path / "clean", [sample for i, sample in enumerate(runs.TEXTS) if i not in (1, 4)])
    expected = runs.weights(runs.train(model, tmp_path / "clean" / "out", data_path=clean))
    data, manifest = runs.write_data(tmp_path), tmp_path / "m.skip.json"
    write_manifest(data, manifest, bad)
    found = runs.weights(runs.train(model, tmp_path / "out", data_path=data, skip_manifest=manifest))
    assert runs.equal(found, expected)
    assert f"skipped 2 of 8 records, which {manifest} names" in caplog.text
    data.write_text(json.dumps(json.loads(data.read_text())))  # the same records, other bytes
    with pytest.raises(ValueError, match=r"skip manifest .*made for .*qwen-vl data check"):
        runs.train(model, tmp_path / "again", data_path=data, skip_manifest=manifest)
