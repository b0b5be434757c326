"""Loggers, the Hub and metrics: problems are reported before a run, and later failures do not end it."""

from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
import wandb
from helpers import runs
from huggingface_hub.errors import HfHubHTTPError
from transformers.integrations import TensorBoardCallback
from wandb.errors import CommError

from qwen_vl.cli import run
from qwen_vl.training import trainer
from qwen_vl.training.flags import arguments
from qwen_vl.training.monitor import callbacks, reporting

NEEDED = ["--data_path", "DATA.json", "--output_dir", "OUT"]
EVALUATED = ["--eval_data_path", "E", "--eval_strategy", "steps", "--save_strategy", "steps"]


@pytest.fixture
def refusal(capsys, monkeypatch, tmp_path):
    """Return a function that gives the parser's message when it exits, on a machine without any login."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED", "HF_TOKEN", "NETRC", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    monkeypatch.setattr(reporting.huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(reporting.huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def refused(*argv):
        with pytest.raises(SystemExit) as ended:
            arguments.parse([*NEEDED, *map(str, argv)])
        assert ended.value.code == 2
        return capsys.readouterr().err.partition("error: ")[2].strip()

    yield refused
    wandb.teardown()  # it keeps the settings that it was first asked with


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--report_to", "wandb"], "--report_to wandb: no account, and no terminal to ask for one; run `wandb login`"),
        (["--report_to", "mlflow"], "--report_to mlflow: MLflowCallback requires mlflow to be installed"),
        (["--report_to", "none", "wandb"], "--report_to none wandb: none and all stand alone"),
        (["--push_to_hub"], "--push_to_hub needs a token"),
        ([*EVALUATED, "--metric_for_best_model", "accuracy"], "accuracy: evaluation measures eval_loss, eval_runtime"),
        (["--metric_for_best_model", "eval_loss"], "--metric_for_best_model needs --eval_strategy"),
        (["--load_best_model_at_end"], "--load_best_model_at_end needs --eval_strategy and --eval_data_path"),
        (["--early_stopping_patience", "2"], "--early_stopping_patience needs --eval_strategy and --eval_data_path"),
        ([*EVALUATED, "--save_strategy", "best"], "--save_strategy best needs --metric_for_best_model; give eval_loss"),
        (
            ["--lr_scheduler_kwargs", '{"foo": 1}'],
            "--lr_scheduler_type cosine: got an unexpected keyword argument 'foo'",
        ),
        (["--lr_scheduler_kwargs", "{foo"], "--lr_scheduler_kwargs {foo: not JSON"),
        (["--lr_scheduler_type", "warmup_stable_decay"], "missing 1 required positional argument: 'num_decay_steps'"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "min_lr"),
        (["--optim_args", "foo"], "--optim_args foo: write name=value"),
        (["--learning_rate", "-1"], "--learning_rate -1.0: use a number of 0 or more"),
        (["--learning_rate", "nan"], "--learning_rate nan: use a number of 0 or more"),
        (["--num_train_epochs", "inf"], "--num_train_epochs inf: use a number above 0"),
        (["--adam_beta1", "2"], "--adam_beta1, --adam_beta2, --adam_epsilon: Invalid beta parameter at index 0"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers -1: use a number of 0 or more"),
        ([*EVALUATED, "--label_names", "answers"], "--label_names: an evaluation finds its loss by the labels alone"),
        (["--deepspeed", "gone.json"], "--deepspeed gone.json: no such file"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_is_known_at_the_start_is_refused_there(refusal, flags, said):
    assert said in refusal(*flags)


def test_accounts(refusal, monkeypatch, tmp_path):
    """Check that an impossible key is an error, and that offline mode or a terminal to ask needs no key."""
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "API key must have 40+ characters" in refusal("--report_to", "wandb")
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert "WANDB_DISABLED forbids it" in refusal("--report_to", "wandb")
    monkeypatch.delenv("WANDB_DISABLED")
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments.parse([*NEEDED, "--report_to", "wandb"])
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("RANK", "1")  # only the first process talks to it
    assert reporting.check(SimpleNamespace(report_to=["wandb"])) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RANK", "0")
    settings = SimpleNamespace(
        report_to=["tensorboard"], logging_dir=str(tmp_path / "file" / "runs"), push_to_hub=False
    )
    assert f"{tmp_path / 'file'} is not a folder; give another --logging_dir" in reporting.check(settings)[0]
    monkeypatch.setattr(reporting.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in reporting.check_hub(SimpleNamespace(push_to_hub=True, hub_token="x"))[0]


def failing(at, error):
    """Return a method of a logger that raises from call number `at` on."""
    calls = []

    def method(self, *args, **kwargs):
        calls.append(1)
        if len(calls) >= at:
            raise error

    return method


SERVER = CommError("run failed:\nthe server said 503")


def test_a_logger_that_cannot_start_is_one_line(make_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TensorBoardCallback, "on_train_begin", failing(1, SERVER))
    with pytest.raises(SystemExit) as ended:
        run.run(lambda _: runs.train(make_checkpoint(), tmp_path / "out", report_to="tensorboard"), [])
    assert ended.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: --report_to tensorboard: run failed: the server said 503; mend it, or leave it out")


def test_a_logger_that_fails_later_is_reported_once_and_the_training_continues(
    make_checkpoint, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(TensorBoardCallback, "on_log", failing(2, SERVER))
    out = runs.train(make_checkpoint(), tmp_path / "out", report_to="tensorboard", logging_dir=tmp_path / "board")
    (said,) = [text for text in caplog.messages if "tensorboard" in text]
    assert "tensorboard has failed at step 2 (run failed: the server said 503): the training goes on without it" in said
    assert len(runs.losses(out)) == 4 and (out / "model.safetensors").is_file()


def test_an_error_of_ours_keeps_its_traceback(make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks.MetricsFile, "on_log", failing(1, KeyError("ours")))
    with pytest.raises(KeyError, match="ours"):
        run.run(lambda _: runs.train(make_checkpoint(), tmp_path / "out", report_to="tensorboard"), [])


@pytest.mark.parametrize("moment", ["at once", "later"])
def test_a_hub_that_fails_ends_no_training(make_checkpoint, tmp_path, monkeypatch, caplog, moment):
    """Check that failed uploads end no run, and that checkpoints are uploaded only after they are renamed."""
    sent, error = [], HfHubHTTPError("503 for url\nRequest ID: x", response=SimpleNamespace(headers={}, request=None))

    def upload_folder(*, folder_path, **kwargs):
        sent.append(folder_path)
        if moment == "at once":
            raise error
        future = Future()
        future.set_exception(error)
        return future

    def init(self):
        self.hub_model_id, self.push_in_progress = "me/model", None

    monkeypatch.setattr(trainer.QWenTrainer, "init_hf_repo", init)
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: SimpleNamespace(upload_folder=upload_folder))
    monkeypatch.setattr(reporting.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    flags = ("--push_to_hub", "--hub_token", "x", "--hub_strategy", "all_checkpoints")
    settings = {"save_strategy": "steps", "save_steps": 2}
    out = runs.train(make_checkpoint(), tmp_path / "out", *flags, **settings)
    assert sent[0] == str(out) and all(path == str(out) or path.startswith(f"{out}/checkpoint-") for path in sent)
    said = [text for text in caplog.messages if "--push_to_hub" in text]
    assert said and all("(503 for url Request ID: x); the training goes on without that" in text for text in said)
    assert len(runs.losses(out)) == 4 and (out / "model.safetensors").is_file()
    if moment == "at once":
        assert f"it is in {out}: send it with `hf upload me/model {out} --exclude 'checkpoint-*'`" in caplog.text


def test_the_final_model_is_sent_to_the_hub(make_checkpoint, tmp_path, monkeypatch):
    sent = []

    def upload_folder(*, folder_path, ignore_patterns, commit_message, repo_id, **kwargs):
        folder = Path(folder_path)
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        ignored = {name for name in files for pattern in ignore_patterns if fnmatch(name, pattern)}
        sent.append((repo_id, commit_message, files - ignored))

    def init(self):
        self.hub_model_id, self.push_in_progress = "me/model", None

    monkeypatch.setattr(trainer.QWenTrainer, "init_hf_repo", init)
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: SimpleNamespace(upload_folder=upload_folder))
    monkeypatch.setattr(reporting.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    flags = ("--push_to_hub", "--hub_token", "x", "--hub_strategy", "end", "--use_lora")
    out = runs.train(make_checkpoint(), tmp_path / "out", *flags, save_strategy="steps", save_steps=2)
    (name, message, files), *others = sent
    assert (name, message, others) == ("me/model", "End of training", [])
    assert {"adapter_model.safetensors", "adapter_config.json", "base.json", "run.json"} <= files
    assert not any("checkpoint-" in file for file in files) and (out / "checkpoint-2").is_dir()


def test_errors_of_services_are_one_line_in_every_command(capsys):
    def fails(argv):
        raise SERVER

    with pytest.raises(SystemExit) as ended:
        run.run(fails, [])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: run failed: the server said 503\n"
    with pytest.raises(CommError):
        run.run(fails, ["--debug"])
