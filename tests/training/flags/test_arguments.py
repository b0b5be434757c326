"""The command line of training: the original's flags, a YAML file first, all mistakes in one list."""

import socket
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments as HfTrainingArguments

from qwen_vl.training.distributed import engines
from qwen_vl.training.flags import arguments

CONFIGS = Path(__file__).parents[3] / "configs"

REFERENCE_LINE = """
    --model_name_or_path MODEL --data_path DATA.json --bf16 True --fix_vit True --output_dir OUT
    --num_train_epochs 5 --per_device_train_batch_size 2 --per_device_eval_batch_size 1
    --gradient_accumulation_steps 16 --evaluation_strategy no --save_strategy steps --save_steps 1000
    --save_total_limit 10 --learning_rate 1e-5 --weight_decay 0.1 --adam_beta2 0.95 --warmup_ratio 0.01
    --lr_scheduler_type cosine --logging_steps 1 --report_to none --model_max_length 512
    --lazy_preprocess True --gradient_checkpointing --use_lora
"""
NEEDED = ["--data_path", "DATA.json", "--output_dir", "OUT"]


def refusal(capsys, *argv):
    """Return the parser's message when it exits with code 2."""
    with pytest.raises(SystemExit) as ended:
        arguments.parse([str(word) for word in argv])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_flag_line_of_the_reference_scripts_means_what_it_meant():
    model, data, lora, training = arguments.parse(REFERENCE_LINE.split())
    assert (model.model_name_or_path, data.data_path, data.lazy_preprocess) == ("MODEL", ["DATA.json"], True)
    assert (lora.lora_r, lora.lora_alpha, lora.lora_dropout, lora.lora_bias) == (64, 16, 0.05, "none")
    assert lora.lora_target_modules == ["c_attn", "attn.c_proj", "w1", "w2"]
    assert training.bf16 and training.fix_vit and training.use_lora and training.activation_checkpointing
    assert training.learning_rate == 1e-5 and training.warmup_steps == 0.01 and training.eval_strategy == "no"
    assert training.lr_scheduler_type == "cosine" and training.report_to == [] and training.adam_beta2 == 0.95
    assert training.model_max_length == 512 and training.save_total_limit == 10


def test_defaults_are_the_reference_recipe():
    _, _, _, training = arguments.parse(NEEDED)
    assert training.fix_vit and not training.use_lora and not training.activation_checkpointing
    assert training.model_max_length == 2048 and training.adam_beta2 == 0.95 and training.lr_scheduler_type == "cosine"
    assert training.optim == "adamw_torch_fused" and training.report_to == []


def test_a_step_finds_its_micro_batches_ready():
    def loader(*flags):
        _, _, _, training = arguments.parse([*NEEDED, *flags])
        return training.dataloader_prefetch_factor, training.dataloader_persistent_workers

    assert loader() == (2, True)
    assert loader("--gradient_accumulation_steps", "16") == (9, True)
    assert loader("--gradient_accumulation_steps", "16", "--dataloader_prefetch_factor", "3") == (3, True)
    assert loader("--dataloader_num_workers", "0") == (None, False)


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--evaluation_strategy", "steps", "--eval_data_path", "E"], "eval_strategy", "steps"),
        (["--warmup_ratio", "0.03"], "warmup_steps", 0.03),
        (["--gradient_checkpointing", "True"], "activation_checkpointing", True),
        (["--gradient_checkpointing", "False"], "activation_checkpointing", False),
        (["--activation_checkpointing"], "activation_checkpointing", True),
        (["--group_by_length"], "train_sampling_strategy", "group_by_length"),
        (["--no_cuda"], "use_cpu", True),
        (["--save_safetensors", "True", "--overwrite_output_dir"], "save_strategy", "steps"),
        (["--report_to", "wandb", "tensorboard"], "report_to", ["wandb", "tensorboard"]),
        (["--no_fix_vit"], "fix_vit", False),
        (["--learning-rate", "3e-4"], "learning_rate", 3e-4),
        (["--debug"], "debug_traceback", True),
        (["--debug", "underflow_overflow"], "debug_traceback", False),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_spellings(flags, name, value):
    _, _, _, training = arguments.parse([*NEEDED, *flags])
    assert getattr(training, name) == value


def test_every_field_of_training_arguments_is_a_flag_with_help(capsys):
    with pytest.raises(SystemExit) as ended:
        arguments.parse(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    known = {option for action in arguments.make_parser()._actions for option in action.option_strings}
    for field in fields(HfTrainingArguments):
        assert not field.init or f"--{field.name}" in known
    for kind in (arguments.ModelArguments, arguments.DataArguments, arguments.LoraArguments):
        for field in fields(kind):
            assert f"--{field.name}" in shown and field.metadata["help"]


def test_the_command_line_wins_over_the_yaml(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "data_path: DATA.json\noutput_dir: OUT\nlearning_rate: 1e-5\nuse_lora: true\neval_strategy: no\n"
        "lora_target_modules: c_attn\nreport_to: [wandb, tensorboard]\nsave_steps: 7\nlora_r:\nfix_vit: yes\n"
        "lr_scheduler_kwargs: {num_cycles: 5e-1}\n"
    )
    _, data, lora, training = arguments.parse([str(config), "--save_steps", "9", "--data_path", "OTHER.json"])
    assert (data.data_path, training.output_dir, training.save_steps) == (["OTHER.json"], "OUT", 9)
    assert training.learning_rate == 1e-5 and training.eval_strategy == "no" and training.use_lora
    assert lora.lora_target_modules == ["c_attn"] and training.report_to == ["wandb", "tensorboard"]
    assert lora.lora_r == 64 and training.lr_scheduler_kwargs == {"num_cycles": 0.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learnin_rate: 1\nuse_lore: 1\n", ["learnin_rate (did you mean --learning_rate?)", "use_lore"]),
        ("learning-rate: 1e-4\n", ["unknown key learning-rate (write learning_rate)"]),
        ("--lora-r: 3\nLora_Alpha: 4\n", ["--lora-r (write lora_r)", "Lora_Alpha (write lora_alpha)"]),
        ("lora r: 3\n1: 2\n", ["lora r (did you mean --lora_r?)", "unknown key 1"]),
        ("- a\n- b\n", ["holds a list"]),
        ("a: [\n", ["not YAML"]),
        ("output_dir: [a, b]\n", ["output_dir takes one value"]),
        ("learning_rate: fast\n", ["invalid float value: 'fast'"]),
        ("bf16: maybe\n", ["--bf16"]),
    ],
)
def test_a_wrong_yaml_is_refused(tmp_path, capsys, text, said):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    message = refusal(capsys, config, *NEEDED)
    assert all(part in message for part in said), message


@pytest.fixture
def offline(monkeypatch):
    """Forbid sockets and process groups, in a process that looks like rank 1 of 2."""

    def refuse(*args, **kwargs):
        raise AssertionError("parsing flags connects nothing")

    for name, value in (("RANK", 1), ("LOCAL_RANK", 1), ("WORLD_SIZE", 2), ("MASTER_ADDR", "x"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(socket, "socket", refuse)
    for name in ("init_process_group", "rendezvous", "TCPStore", "new_group"):
        monkeypatch.setattr(torch.distributed, name, refuse)
    monkeypatch.setattr("accelerate.PartialState.__init__", refuse)


@pytest.mark.parametrize(
    "words",
    [
        *([str(path), *NEEDED, "--eval_data_path", "EVAL.json"] for path in sorted((CONFIGS / "train").glob("*.yaml"))),
        *([*NEEDED, "--deepspeed", str(path)] for path in sorted((CONFIGS / "deepspeed").glob("*.json"))),
        *([*NEEDED, "--fsdp", "--fsdp_config", str(path)] for path in sorted((CONFIGS / "fsdp").glob("*.json"))),
    ],
    ids=lambda words: Path(next(word for word in words if "/" in word)).stem,
)
def test_parsing_a_shipped_config_connects_no_process(offline, monkeypatch, words):
    flags = arguments.parse([*words, "--use_cpu", "True"])
    assert not torch.distributed.is_initialized()
    assert flags.training.output_dir == "OUT" and flags.data.data_path == ["DATA.json"]
    connected = []
    monkeypatch.setattr(engines, "initialize", lambda **how: connected.append(how) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        flags.training.start()
    assert connected == [{"use_cpu": True, "timeout": 300, "ddp_timeout": 1800}]
