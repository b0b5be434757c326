"""DDP, DeepSpeed and FSDP with two CPU processes: the losses and the saved weights of one process."""

import json
import os
import subprocess
import sys
from functools import cache

import pytest
from helpers import runs

from qwen_vl.files import read_entries
from qwen_vl.training.held_out import answer_log
from qwen_vl.training.monitor.callbacks import METRICS_FILE

DRIVER = runs.ROOT / "tests" / "engine_driver.py"
ENGINES = {
    "ddp": (),
    **{path.stem: ("--deepspeed", str(path)) for path in sorted((runs.ROOT / "configs" / "deepspeed").glob("*.json"))},
    **{
        f"fsdp_{path.stem}": ("--fsdp", "--fsdp_config", str(path))
        for path in sorted((runs.ROOT / "configs" / "fsdp").glob("*.json"))
    },
}
FEW_IMAGES = (
    [sample for sample in runs.TEXTS if sample[0]][:1]
    + [s for s in runs.TEXTS if not s[0]] * 3
    + [
        (None, "2+2?", "4"),
        (None, "Again?", "Yes."),
    ]
)  # one image in 12 samples: in most steps no process has one
LEARNED = "learned"  # in place of a chat format: a model that has learned what it is asked, so it writes texts
LORA = ("--use_lora", "--lora_dropout", "0")
GENERATE = (  # 7 questions, so that ranks have different numbers of batches and of images
    *("--eval_generate", "True", "--eval_generate_limit", "7"),
    *("--eval_generate_max_new_tokens", "9", "--eval_generate_batch_size", "2"),
)
EVERY_STEP = ("--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2")
TOO_FAST = ("--learning_rate", "0.03", "--lr_scheduler_type", "constant", "--max_steps", "8")  # best before the end
MODES = {  # chat format of the model, flags, data
    "full": ("chatml", (), runs.TEXTS),
    "full_vit": ("chatml", ("--fix_vit", "False"), runs.TEXTS),
    "lora": ("chatml", LORA, runs.TEXTS),
    "lora_base": ("raw", LORA, runs.TEXTS),
    "few_pictures": ("chatml", ("--fix_vit", "False", "--weight_decay", "0.5"), FEW_IMAGES),
    "recomputed": ("chatml", (*LORA, "--gradient_checkpointing", "True"), runs.TEXTS),
    "recomputed_full": ("chatml", ("--gradient_checkpointing", "True"), runs.TEXTS),
    "best": ("raw", (*LORA, *EVERY_STEP, *TOO_FAST, "--early_stopping_patience", "2"), runs.TEXTS),
    "few_pictures_lora": ("raw", LORA, FEW_IMAGES),
    "answers": (LEARNED, ("--fix_vit", "False", *GENERATE), runs.TEXTS),
    "answers_lora": (LEARNED, (*LORA, *GENERATE), runs.TEXTS),
}
MARKED = [(image, question, f"<act> {answer}") for image, question, answer in runs.TEXTS]  # a new token
VARIANTS = {  # of adapters, and what else depends on the engine
    "dora": ("chatml", (*LORA, "--use_dora", "--use_rslora"), runs.TEXTS),
    "rates": ("chatml", (*LORA, "--lora_target_modules", "attention", "mlp", "resampler", "--loraplus_lr_ratio", "4",
                         "--resampler_lr", "1e-4"), runs.TEXTS),
    "new_token": ("chatml", (*LORA, "--new_special_tokens", "<act>"), MARKED),
}  # fmt: skip
WHOLE_WEIGHTS = {  # refused where ranks hold parts of the weights: test_lora_targets.py, test_vision_cache.py
    "pissa": ("chatml", (*LORA, "--init_lora_weights", "pissa"), runs.TEXTS),
    "cached": ("chatml", (*LORA, "--vision_cache", "{folder}/features"), runs.TEXTS),
}
USUAL = {  # of the default test run
    "ddp": ("few_pictures", "answers"),
    "zero3": ("few_pictures", "lora_base", "best", "answers_lora"),
    "fsdp_full_state_dict": ("few_pictures", "lora_base", "recomputed", "recomputed_full", "answers"),
}
EVERY = [pytest.param(engine, tuple(MODES), marks=pytest.mark.slow) for engine in ENGINES]


@pytest.fixture(scope="module")
def make_checkpoint(make_checkpoint, tmp_path_factory):
    """Return the function of the same name, which makes LEARNED, too."""

    @cache
    def learned():
        folder = tmp_path_factory.mktemp(LEARNED)
        settings = {"max_steps": 40, "learning_rate": 5e-3, "warmup_steps": 5, "per_device_train_batch_size": 4}
        return runs.train(make_checkpoint(), folder / "out", **settings)

    return lambda chat_format="chatml": learned() if chat_format == LEARNED else make_checkpoint(chat_format)


def command(make_checkpoint, folder, mode, *more, **settings):
    """Return the command line of a mode's run with evaluation, with the result in FOLDER/MODE/out."""
    chat_format, flags, samples = (MODES | VARIANTS | WHOLE_WEIGHTS)[mode]
    flags = [flag.format(folder=folder) for flag in flags]
    (folder / mode).mkdir()
    data = runs.write_data(folder / mode, samples)
    evaluation = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 3, "eval_data_path": data}
    settings = {"max_steps": 6, "data_path": data, **evaluation, **settings}
    return runs.command(make_checkpoint(chat_format), folder / mode / "out", *flags, *more, **settings)


@pytest.fixture(scope="module")
def alone(make_checkpoint, tmp_path_factory):
    """Return a function that gives the output folder of a mode's run in one process, which runs only once."""
    folder, made = tmp_path_factory.mktemp("alone"), {}

    def train(mode):
        if mode not in made:
            made[mode] = runs.run(command(make_checkpoint, folder, mode, per_device_train_batch_size=4))
        return made[mode]

    return train


def launch(commands, folder, processes=2, timeout=400, **environment):
    """Run finetune.main several times in the same processes of one torchrun, and return the finished process."""
    plan = folder / "runs.json"
    plan.write_text(json.dumps(commands), encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [sys.executable, *torchrun, str(DRIVER), str(plan)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(runs.ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def check_answers(out, one):
    """Check that two runs had the same answers to the held-out questions at each evaluation, and the same figures."""
    answers, expected = (answer_log.read(folder / answer_log.FILE) for folder in (out, one))
    assert answers == expected and len(answers) == 2 * 7  # evaluations, questions
    assert len({entry["answer"] for entry in answers}) > 3
    figures = [key for key in read_entries(one / METRICS_FILE)[-2] if key.startswith(("eval_score", "eval_text_"))]
    assert len(figures) > 3
    for key in figures:
        assert runs.losses(out, key) == runs.losses(one, key), key


@pytest.mark.parametrize(("engine", "modes"), [*USUAL.items(), *EVERY])
def test_an_engine_equals_one_process(make_checkpoint, tmp_path, alone, engine, modes):
    """Compare two ranks of 2 samples a step with one of 4: losses, evaluation and the saved files, which load again."""
    commands = [command(make_checkpoint, tmp_path, mode, *ENGINES[engine]) for mode in modes]
    done = launch(commands, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    for mode in modes:
        out, one = tmp_path / mode / "out", alone(mode)
        rounding = 1e-3 if mode == "best" else 1e-5  # a run that goes astray on purpose magnifies each difference
        assert runs.losses(out) == pytest.approx(runs.losses(one), rel=rounding), mode
        assert runs.losses(out, "eval_loss") == pytest.approx(runs.losses(one, "eval_loss"), rel=rounding), mode
        assert {file.name for file in out.iterdir()} == {file.name for file in one.iterdir()}, mode
        if "--eval_generate" in MODES[mode][1]:
            check_answers(out, one)
        settings = [json.loads((folder / "trainer_state.json").read_text()) for folder in (out, one)]
        assert settings[0]["best_global_step"] == settings[1]["best_global_step"]
        if mode != "best":
            assert runs.largest_difference(runs.weights(one), runs.weights(out)) < 1e-4, mode
        base = make_checkpoint(MODES[mode][0]) if "--use_lora" in MODES[mode][1] else None
        reloaded = runs.evaluate(out, tmp_path / mode / "data.json", base=base)
        last = runs.losses(out, "eval_loss")[-1]
        assert reloaded == pytest.approx(settings[0]["best_metric"] or last, rel=1e-5), mode


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp_full_state_dict"])
def test_half_precision(make_checkpoint, tmp_path, alone, engine):
    """Check bf16, where trainable parts may start in different dtypes: losses close to float32, all weights saved."""
    modes = ("full", "lora_base")
    more = (*ENGINES[engine], "--bf16", "True", "--max_steps", "3")
    done = launch([command(make_checkpoint, tmp_path, mode, *more) for mode in modes], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    for mode in modes:
        out = tmp_path / mode / "out"
        assert runs.losses(out) == pytest.approx(runs.losses(alone(mode))[:3], rel=5e-3), mode
        assert runs.weights(out).keys() == runs.weights(alone(mode)).keys(), mode


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp_full_state_dict"])
def test_variants_of_adapters(make_checkpoint, tmp_path, alone, engine):
    """Compare DoRA, PiSSA, learning rates of parts and rows of new tokens with a run in one process."""
    modes = [*VARIANTS, *(WHOLE_WEIGHTS if engine in ("ddp", "zero2") else ())]
    if engine == "zero3":  # refused: test_lora_targets.py
        modes.remove("new_token")
    done = launch([command(make_checkpoint, tmp_path, mode, *ENGINES[engine]) for mode in modes], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    for mode in modes:
        out, one = tmp_path / mode / "out", alone(mode)
        for key in ("loss", "eval_loss"):
            assert runs.losses(out, key) == pytest.approx(runs.losses(one, key), rel=1e-5), (mode, key)
        steps = 4 if mode == "rates" else 1  # as large as those of the other modes: rounding grows with them
        assert runs.largest_difference(runs.weights(one), runs.weights(out)) < steps * 1e-4, mode


@pytest.mark.slow
def test_zero3_gathers_lm_head_for_each_chunk_of_logits(make_checkpoint, tmp_path, alone):
    """Check that ranks with different numbers of targets gather it equally often: losses equal those of one process."""
    modes = ("full", "lora_base")
    commands = [command(make_checkpoint, tmp_path, mode, *ENGINES["zero3"]) for mode in modes]
    done = launch(commands, tmp_path, CHUNK_BYTES=str(4 * 1220 * 7))  # of 7 targets
    assert done.returncode == 0, done.stderr[-4000:]
    for mode in modes:
        assert runs.losses(tmp_path / mode / "out") == pytest.approx(runs.losses(alone(mode)), rel=1e-5), mode


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp_full_state_dict"])
def test_what_gets_no_gradient_ends_the_run_under_every_engine(make_checkpoint, tmp_path, engine):
    done = launch([command(make_checkpoint, tmp_path, "full", *ENGINES[engine])], tmp_path, CUT_OFF="1")
    assert done.returncode == 1
    assert "error: step 1: 1 parameter (transformer.wte.weight) was to train and got no gradient" in done.stderr


SHARES = """
import os, pathlib, sys
from qwen_vl.checkpoint import loading
from qwen_vl.training.flags import arguments
kept = arguments.parse(sys.argv[2:])
kept.training.start()  # DeepSpeed is on as long as these arguments live
parameters = list(loading.load_model(sys.argv[1]).parameters())
counts = [sum(p.ds_numel for p in parameters), sum(p.ds_tensor.numel() for p in parameters)]
counts.append(sum(p.numel() for p in parameters))
pathlib.Path(__file__).with_name("counts" + os.environ["RANK"]).write_text(" ".join(map(str, counts)))
"""


@pytest.mark.slow
def test_zero3_loads_a_share_of_the_model(make_checkpoint, tmp_path):
    """Check that no rank ever holds the whole model, since it is sharded from loading on."""
    (tmp_path / "shares.py").write_text(SHARES)
    flags = ["--output_dir", "out", "--data_path", "d.json", "--use_cpu", "True", *ENGINES["zero3"]]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(tmp_path / "shares.py"), str(make_checkpoint()), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(runs.ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):
        whole, share, held_whole = map(int, (tmp_path / f"counts{rank}").read_text().split())
        assert share < 0.51 * whole and held_whole == 0
