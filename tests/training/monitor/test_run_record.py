"""run.json: origin and settings of a trained model."""

import json

from qwen_vl.training.monitor import callbacks, run_record

METRICS = [
    {"step": 1, "loss": 2.0, "learning_rate": 1e-4},
    {"step": 2, "eval_loss": 1.5, "eval_runtime": 3.0},
    {"step": 3, "loss": 1.0},
]


def test_a_record_is_portable_and_belongs_to_weights(tmp_path):
    data = tmp_path / "data.json"
    data.write_text("[]")
    (tmp_path / callbacks.METRICS_FILE).write_text("".join(json.dumps(entry) + "\n" for entry in METRICS))
    settings = {"learning_rate": 1e-4, "output_dir": str(tmp_path)}
    resumed = [{"step": 2, "applied": {"weight_decay": [0.1, 0.0]}}]
    written = run_record.write(
        tmp_path, settings=settings, base={"name": "B"}, data_path=[f"{data}:2"], resumed=resumed
    )
    assert written["settings"] == {"learning_rate": 1e-4}
    assert written["metrics"] == {"steps": 3, "loss": 1.0, "eval_loss": 1.5}
    assert written["data"] == run_record.hashed(data) and written["data"][0]["name"] == "data.json"
    assert run_record.earlier(written) == {"weight_decay until step 2": 0.1}
    assert run_record.read(tmp_path) == {}, "there are no weights next to it"
    (tmp_path / "model.safetensors").touch()
    assert run_record.read(tmp_path) == written
