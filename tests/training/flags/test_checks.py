"""Wrong flags: each is named, all of them together, before anything is loaded."""

import pytest

from qwen_vl.training.flags import arguments

NEEDED = ["--data_path", "DATA.json", "--output_dir", "OUT"]


def refusal(capsys, *argv):
    """Return the parser's message when it exits with code 2."""
    with pytest.raises(SystemExit) as ended:
        arguments.parse([str(word) for word in argv])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lora_rr", "3", "--fixvit"], ["--lora_rr (did you mean --lora_r?)", "--fixvit (did you mean --fix_vit?)"]),
        (["--model_name", "x"], ["--model_name (did you mean --model_name_or_path?)"]),
        (["stray"], ["unknown argument stray"]),
        (["-learning_rate", "1"], ["-learning_rate (write --learning_rate), 1"]),
        (["\u2014Learning-Rate=1"], ["Rate=1 (write --learning_rate)"]),
        (["learning_rate=1e-4"], ["learning_rate=1e-4 (write --learning_rate)"]),
        (["--learning_rate", "fast"], ["invalid float value"]),
        (["--quantization", "int8"], ["--quantization needs --q_lora"]),
        (["--q_lora", "--quantization", "fp4"], ["--quantization fp4: use one of nf4, int8"]),
        (["--use_lora", "--init_lora_weights", "pissa_niter_4"], ["would load as another model; use pissa"]),
        (["--use_lora", "--init_lora_weights", "best"], ["use one of default, gaussian, pissa, olora"]),
        (["--use_lora", "--loraplus_lr_ratio", "0.5"], ["--loraplus_lr_ratio 0.5: use a number of 1 or more"]),
        (["--use_lora", "--loraplus_lr_ratio", "0"], ["--loraplus_lr_ratio 0.0: use a number of 1 or more"]),
        (["--vision_lr", "-1"], ["--vision_lr -1.0: use a number of 0 or more"]),
        (["--use_dora", "--lora_lr", "1e-4"], ["--use_dora needs --use_lora", "--lora_lr needs --use_lora"]),
        (
            ["--use_lora", "--lora_weight_path", "A", "--use_rslora", "--init_lora_weights", "pissa"],
            ["--use_rslora: the adapter of --lora_weight_path decides", "--init_lora_weights: the adapter"],
        ),
        (["--use_lora", "--fix_vit", "False"], ["--fix_vit False has no effect"]),
        (["--modules_to_save", "wte"], ["--modules_to_save needs --use_lora"]),
        (["--evaluation_strategy", "epoch"], ["--eval_data_path"]),
        (["--bf16", "--fp16"], ["fp16"]),
        (["--num_train_epochs", "0"], ["--num_train_epochs 0.0"]),
        (["--optim", "sdg"], ["sdg", "adamw_torch"]),
        (["--optim", "paged_adamw_8bit"], ["there is no GPU; use adamw_bnb_8bit"]),
        (
            ["--optim", "adamw_8bit", "--deepspeed", "x.json"],
            ["--optim adamw_8bit: bitsandbytes keeps its state where"],
        ),
        (["--checkpoint_every_n_blocks", "2"], ["--checkpoint_every_n_blocks needs --gradient_checkpointing"]),
        (["--sample_phases_every", "-1"], ["--sample_phases_every -1: use a number of 0 or more"]),
        (["--report_to", "wandbb"], ["--report_to wandbb"]),
        (["--save_safetensors", "False"], ["safetensors"]),
        (["--remove_unused_columns", "True"], ["images"]),
        (["--label_smoothing_factor", "0.1"], ["--label_smoothing_factor 0.1"]),
        (["--lora_dropout", "1"], ["--lora_dropout 1.0"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_what_no_run_can_use_is_refused(capsys, flags, said):
    message = refusal(capsys, *NEEDED, *flags)
    assert all(part in message for part in said), message


NOT_NEGATIVE = dict.fromkeys(
    ("learning_rate", "vision_lr", "resampler_lr", "lora_lr", "weight_decay"), "a number of 0 or more"
) | {"loraplus_lr_ratio": "a number of 1 or more", "lora_dropout": "a number from 0", "num_train_epochs": "a number"}
FINITE = dict.fromkeys(
    ("warmup_steps", "warmup_ratio", "neftune_noise_alpha", "logging_steps", "eval_steps", "save_steps"),
    "a finite number",
)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("-0.5", NOT_NEGATIVE),
        ("inf", NOT_NEGATIVE | FINITE),
        ("nan", NOT_NEGATIVE | FINITE | {"max_grad_norm": "a number", "eval_delay": "a number"}),
    ],
)
def test_each_impossible_number_is_one_line(capsys, value, wanted):
    flags = [word for flag in wanted for word in (f"--{flag}", value)]
    message = refusal(capsys, *NEEDED, "--use_lora", *flags)
    lines = [line.strip() for line in message.partition("error: ")[2].splitlines()]
    assert len(lines) == len(wanted), message
    for flag, what in wanted.items():
        assert any(line.startswith(f"--{flag} {value}: use {what}") for line in lines), message


def test_numbers_that_mean_off_or_without_limit_are_accepted():
    flags = arguments.parse([*NEEDED, "--use_lora", "--lora_lr", "0", "--vision_lr", "0", "--max_grad_norm", "inf"])
    assert (flags.lora.lora_lr, flags.training.vision_lr, flags.training.max_grad_norm) == (0, 0, float("inf"))


def test_all_problems_are_listed_together(capsys):
    message = refusal(
        capsys, "--model_max_length", "0", "--lora_bias", "some", "--lora_weight_path", "A", "--bf16", "--fp16"
    )
    for part in (
        "--output_dir",
        "--data_path",
        "--model_max_length 0",
        "--lora_bias some",
        "--lora_weight_path",
        "bf16",
    ):
        assert part in message


def test_the_trained_model_may_not_overwrite_its_origin(capsys, make_checkpoint):
    folder = make_checkpoint()
    message = refusal(capsys, "--model_name_or_path", folder, "--output_dir", f"{folder}/", "--data_path", "D")
    assert "give another folder" in message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data_path", "a.json:0"], ["a.json:0: use a weight above 0"]),
        (["--mix", "shuffle"], ["--mix shuffle: use one of concat, interleave"]),
        (["--overlength", "cut", "--loss_on", "all"], ["trim, drop, error", "reference, answers"]),
        (
            ["--streaming", "--group_by_length", "--tokenized_cache", "C"],
            ["--max_steps", "--group_by_length", "--tokenized_cache"],
        ),
    ],
)
def test_data_flags_that_do_not_fit(capsys, flags, said):
    message = refusal(capsys, *NEEDED, *flags)
    assert all(part in message for part in said), message
