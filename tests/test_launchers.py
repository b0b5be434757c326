"""The launchers of finetune/: what they hand to finetune.py, and short runs from another working directory."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import runs
from safetensors.torch import load_file

from qwen_vl.training.flags import arguments

ROOT = Path(__file__).resolve().parents[1]
FULL, LORA = ROOT / "finetune" / "finetune_single_gpu.sh", ROOT / "finetune" / "finetune_lora_single_gpu.sh"
QLORA = ROOT / "finetune" / "finetune_qlora_single_gpu.sh"
SLURM = ROOT / "finetune" / "finetune_slurm.sh"
MANY = {  # launchers of several processes: the flag and the config that choose the engine
    "finetune_ds.sh": ("deepspeed", "configs/deepspeed/zero3.json"),
    "finetune_lora_ds.sh": ("deepspeed", "configs/deepspeed/zero2.json"),
    "finetune_qlora_ds.sh": ("deepspeed", "configs/deepspeed/zero2.json"),
    "finetune_fsdp.sh": ("fsdp_config", "configs/fsdp/full_state_dict.json"),
    "finetune_lora_fsdp.sh": ("fsdp_config", "configs/fsdp/full_state_dict.json"),
}
SCRIPTS = sorted([*ROOT.glob("finetune/*.sh"), *ROOT.glob("scripts/*.sh")])
SHELL = shutil.which("dash") or "sh"  # dash knows POSIX and little else
SHORT = ["--max_steps", "2", "--gradient_accumulation_steps", "1", "--model_max_length", "128"]


def launch(script, *arguments, cwd, **environment):
    """Return the finished process of a launcher, its output as text."""
    ours = ("MODEL", "DATA", "OUTPUT", "NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "MAX_RESTARTS")
    inherited = {name: value for name, value in os.environ.items() if name not in (*ours, "OMP_NUM_THREADS")}
    return subprocess.run(
        [SHELL, str(script), *map(str, arguments)],
        cwd=cwd,
        env={**inherited, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def recorder(tmp_path):
    """Return a stand-in for Python: it says how many GPUs there are ($GPUS), and prints its arguments one a line."""
    program = tmp_path / "a python"
    program.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo $GPUS; else printf \'%s\\n\' "$@"; fi\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def work_dir(tmp_path):
    """Return a folder with a space in its name that holds `my data.json`: two conversations with an image."""
    folder = tmp_path / "some where"
    folder.mkdir()
    shutil.copy(ROOT / "tests/golden/images/rgb.png", folder / "a.png")
    turns = [
        ("Picture 1: <img>a.png</img>\nWhere?", "<ref>it</ref><box>(1,2),(30,40)</box>"),
        ("<img>a.png</img>Hello", "Good day"),
    ]
    records = [
        {"id": n, "conversations": [{"from": "user", "value": q}, {"from": "assistant", "value": a}]}
        for n, (q, a) in enumerate(turns)
    ]
    (folder / "my data.json").write_text(json.dumps(records))
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_posix_shell(script):
    checked = subprocess.run([SHELL, "-n", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    if shutil.which("shellcheck"):
        checked = subprocess.run(
            ["shellcheck", "-x", "-P", "SCRIPTDIR", "-s", "sh", str(script)], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", [FULL, LORA, QLORA], ids=lambda path: path.name)
def test_the_recipe_and_where_it_can_be_changed(script, recorder, tmp_path):
    """Options in any place, the environment, and flags of the caller, which win over the launcher's."""
    common = {"cwd": tmp_path, "PYTHON": recorder, "GPUS": 0}
    given = launch(script, "--learning_rate", "3e-4", "-m", "a model", "--fp16", "False", "-d", "d d.json", **common)
    assert given.returncode == 0, given.stderr
    program, *flags = given.stdout.splitlines()
    assert Path(program) == ROOT / "finetune.py"
    model, data, lora, training = arguments.parse(flags)
    assert (model.model_name_or_path, data.data_path) == ("a model", ["d d.json"])
    assert training.use_lora == (script != FULL) and lora.q_lora == (script == QLORA) and training.fix_vit
    assert training.output_dir == {FULL: "output/full", LORA: "output/lora", QLORA: "output/qlora"}[script]
    assert training.learning_rate == 3e-4 and training.adam_beta2 == 0.95 and training.weight_decay == 0.1
    assert (training.lr_scheduler_type, training.warmup_steps) == ("cosine", 0.01)
    assert training.per_device_train_batch_size == 1 and training.gradient_accumulation_steps == 8
    assert training.model_max_length == 2048 and training.activation_checkpointing
    assert (lora.lora_r, lora.lora_alpha, lora.lora_dropout) == (64, 16, 0.05)
    assert training.use_cpu and not training.bf16
    assert "no GPU" in given.stderr and len(given.stderr.splitlines()) == 1

    from_environment = launch(script, **common, MODEL="a model", DATA="d d.json", OUTPUT="o")
    options = launch(script, "--output", "o", "--data", "d d.json", "--model", "a model", **common, MODEL="x", DATA="y")
    assert options.stdout == from_environment.stdout != given.stdout
    assert arguments.parse(options.stdout.splitlines()[1:])[3].output_dir == "o"


def test_a_gpu_gets_bf16(recorder, tmp_path):
    flags = launch(LORA, "-d", "d.json", cwd=tmp_path, PYTHON=recorder, GPUS=1).stdout.splitlines()
    assert flags[flags.index("--bf16") + 1] == "True" and "--use_cpu" not in flags


def test_qlora_takes_the_int4_checkpoint_and_computes_in_fp16(recorder, tmp_path):
    """As its authors did."""
    flags = launch(QLORA, "-d", "d.json", cwd=tmp_path, PYTHON=recorder, GPUS=1).stdout.splitlines()
    settings = arguments.make_parser().parse_args(flags[1:])
    assert settings.model_name_or_path == "Qwen/Qwen-VL-Chat-Int4"
    assert settings.fp16 and not settings.bf16 and not settings.use_cpu


def torchrun_flags(done):
    """Return ({flag: value} of torchrun, the flags of finetune.py) that a launcher of several processes called."""
    assert done.returncode == 0, done.stderr
    program, *lines = done.stdout.splitlines()
    assert Path(program) == ROOT / "scripts" / "torchrun.py"
    at = lines.index(str(ROOT / "finetune.py"))
    own = [word for flag in lines[:at] for word in ([flag, "yes"] if flag == "--standalone" else [flag])]
    return dict(zip(own[::2], own[1::2], strict=True)), lines[at + 1 :]


@pytest.mark.parametrize("name", MANY)
def test_launchers_of_several_processes(name, recorder, tmp_path):
    """One process a GPU, two without; the engine's config; and what the caller gives wins."""
    script, (flag, config) = ROOT / "finetune" / name, MANY[name]
    common = {"cwd": tmp_path, "PYTHON": recorder}
    topology, flags = torchrun_flags(launch(script, "-d", "d.json", **common, GPUS=4))
    always = {"--max_restarts": "0", "--shutdown_timeout": "600"}
    assert topology == {"--standalone": "yes", "--nproc_per_node": "4", **always}
    settings = arguments.make_parser().parse_args(flags)
    assert Path(getattr(settings, flag)) == ROOT / config and bool(settings.fsdp) == (flag == "fsdp_config")
    assert settings.use_lora == ("lora" in name) and settings.q_lora == ("qlora" in name) and not settings.use_cpu
    assert (settings.fp16, settings.bf16) == (("qlora" in name), ("qlora" not in name))
    assert settings.learning_rate == 1e-5 and settings.data_path == ["d.json"]

    on_cpu = launch(script, "-d", "d.json", **common, GPUS=0)
    assert "no GPU" in on_cpu.stderr
    topology, flags = torchrun_flags(on_cpu)
    assert topology["--nproc_per_node"] == "2"
    assert arguments.make_parser().parse_args(flags).use_cpu
    asked = launch(script, "--use_cpu", "True", f"--{flag}", "mine.json", **common, GPUS=4, NPROC=3, MAX_RESTARTS=5)
    topology, flags = torchrun_flags(asked)
    settings = arguments.make_parser().parse_args(flags)
    assert (topology["--nproc_per_node"], topology["--max_restarts"]) == ("3", "5")
    assert settings.use_cpu and not settings.bf16 and getattr(settings, flag) == "mine.json" and not asked.stderr


def test_several_machines(recorder, tmp_path):
    common = {"cwd": tmp_path, "PYTHON": recorder, "GPUS": 8}
    script = ROOT / "finetune/finetune_ds.sh"
    topology, _ = torchrun_flags(launch(script, **common, NNODES=2, NODE_RANK=1, MASTER_ADDR="10.0.0.1"))
    assert topology == {
        "--nnodes": "2",
        "--rdzv_backend": "machines",
        "--rdzv_endpoint": "10.0.0.1:29500",
        "--rdzv_conf": "rank=1",
        "--rdzv_id": "qwen-vl",
        "--nproc_per_node": "8",
        "--max_restarts": "0",
        "--shutdown_timeout": "600",
    }
    for wrong in ({"NNODES": 2}, {"NNODES": "two"}, {"NPROC": 0}, {"NNODES": 2, "NODE_RANK": 0}):
        refused = launch(script, **common, **wrong)
        assert refused.returncode == 2 and next(iter(wrong)) in refused.stderr and not refused.stdout


def test_slurm(recorder, tmp_path):
    """Each task of a job gets the addresses and its rank; srun and scontrol are stand-ins."""
    for name, text in {
        "scontrol": '[ "$*" = "show hostnames gpu[1-2]" ] && printf "gpu1\\ngpu2\\n"',
        "srun": 'while [ "${1#-}" != "$1" ]; do shift; done\n'
        'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_JOB_NUM_NODES": 2, "SLURM_JOB_ID": 1234567}
    job |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": recorder, "GPUS": 8}
    done = launch(SLURM, "-d", "a b.json", cwd=tmp_path, SLURM_SUBMIT_DIR=ROOT, LAUNCHER="finetune_lora_ds.sh", **job)
    assert done.returncode == 0, done.stderr
    tasks = done.stdout.split(str(ROOT / "scripts" / "torchrun.py"))[1:]
    assert len(tasks) == 2
    for rank, task in enumerate(tasks):
        lines = task.splitlines()
        assert lines[lines.index("--rdzv_conf") + 1] == f"rank={rank}" and lines[lines.index("--nnodes") + 1] == "2"
        assert lines[lines.index("--rdzv_endpoint") + 1] == "gpu1:24567"
        assert "a b.json" in lines and "--use_lora" in lines
    lost = launch(SLURM, cwd=tmp_path, SLURM_SUBMIT_DIR=tmp_path, **job)
    assert lost.returncode == 2 and "set ROOT" in lost.stderr


def test_every_command_of_the_document_on_several_gpus(recorder, tmp_path):
    """Each starts finetune.py with flags that it takes, on as many processes and machines as the line says."""
    (tmp_path / "sbatch").write_text('#!/bin/sh\nshift 2\nexec sh "$@"\n')
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho gpu1\n")
    (tmp_path / "srun").write_text('#!/bin/sh\nshift\nSLURM_NODEID=3 exec "$@"\n')
    for name in ("sbatch", "scontrol", "srun"):
        (tmp_path / name).chmod(0o755)
    text = (ROOT / "docs" / "multi_gpu.md").read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    job = {"SLURM_JOB_NODELIST": "gpu[1-4]", "SLURM_JOB_NUM_NODES": 4, "SLURM_JOB_ID": 1, "SLURM_SUBMIT_DIR": ROOT}
    job |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": recorder, "GPUS": 8}
    (tmp_path / "line.sh").touch()
    for line in lines:
        (tmp_path / "line.sh").write_text(f"{line}\n")
        topology, flags = torchrun_flags(launch(tmp_path / "line.sh", cwd=ROOT, **job))
        settings = arguments.make_parser().parse_args(flags)
        assert settings.data_path == ["my_data.json"] and (settings.deepspeed or settings.fsdp), line
        assert topology["--nproc_per_node"] == ("2" if "NPROC=2" in line else "8"), line
        assert topology.get("--nnodes", "1") == ("4" if "sbatch" in line else "2" if "NNODES=2" in line else "1"), line
    assert len(lines) >= 10


def test_help_and_mistakes(recorder, tmp_path):
    shown = launch(LORA, "-h", cwd=tmp_path)
    assert shown.returncode == 0 and "-d DATA" in shown.stdout
    forgotten = launch(LORA, "-d", cwd=tmp_path)
    assert forgotten.returncode == 2 and "-d needs a value" in forgotten.stderr
    no_torch = launch(LORA, "-d", "d.json", cwd=tmp_path, PYTHON="false")
    assert no_torch.returncode == 1 and "cannot import torch" in no_torch.stderr


def steps(folder):
    """Return how many optimizer steps the run that wrote `folder` made."""
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


def test_full_training_runs(make_checkpoint, work_dir):
    folder = make_checkpoint("raw")
    variables = {"MODEL": folder, "DATA": "my data.json", "OUTPUT": "trained", "PYTHON": sys.executable}
    done = launch(FULL, *SHORT, "--learning_rate", "1e-3", cwd=work_dir, **variables)
    assert done.returncode == 0, done.stderr
    assert "training on the CPU in fp32" in done.stderr
    before, after = load_file(folder / "model.safetensors"), load_file(work_dir / "trained" / "model.safetensors")
    assert steps(work_dir / "trained") == 2
    changed = {name for name in before if not before[name].equal(after[name])}
    assert "transformer.h.0.attn.c_attn.weight" in changed and "transformer.visual.attn_pool.query" in changed
    assert "transformer.visual.conv1.weight" not in changed


def test_lora_training_runs(make_checkpoint, work_dir):
    options = ["-m", make_checkpoint(), "-d", "my data.json", "-o", work_dir / "adapter of mine"]
    done = launch(LORA, *options, *SHORT, cwd=work_dir, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert steps(work_dir / "adapter of mine") == 2
    assert not runs.noise(done.stdout + done.stderr)
    assert load_file(work_dir / "adapter of mine" / "adapter_model.safetensors")


def test_two_processes_train(make_checkpoint, work_dir):
    """As two CPU processes with DeepSpeed ZeRO-2; tests/training/distributed/test_engines.py compares all engines."""
    options = ["-m", make_checkpoint(), "-d", "my data.json", "-o", "adapter of mine"]
    script = ROOT / "finetune/finetune_lora_ds.sh"
    done = launch(script, *options, *SHORT, cwd=work_dir, PYTHON=sys.executable, NPROC=2, OMP_NUM_THREADS=1)
    assert done.returncode == 0 and not runs.noise(done.stderr), done.stderr
    assert steps(work_dir / "adapter of mine") == 2
    assert load_file(work_dir / "adapter of mine" / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune_qlora_single_gpu.sh", "finetune_qlora_ds.sh"])
def test_qlora_training_runs(make_int4_checkpoint, work_dir, name):
    options = ["-m", make_int4_checkpoint(), "-d", "my data.json", "-o", "adapter"]
    done = launch(ROOT / "finetune" / name, *options, *SHORT, cwd=work_dir, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert steps(work_dir / "adapter") == 2
    assert json.loads((work_dir / "adapter" / "base.json").read_text())["quantization"] == "gptq"
    for noise in ("Failed to load", "Setting accelerator", "GPT-QModel", "INFO ", "loss_type", "Traceback"):
        assert noise not in done.stdout.replace("[INFO]", "") + done.stderr


def free_port():
    """Return a port that no process listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_machine_that_is_missing_is_named(make_checkpoint, work_dir):
    """Two machines are asked for, and one comes: one error, no traceback."""
    machine = {"NNODES": 2, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NPROC": 1}
    options = ["-m", make_checkpoint(), "-d", "my data.json", "--meeting_timeout", "2", "--use_cpu", "True"]
    done = launch(ROOT / "finetune/finetune_lora_ds.sh", *options, cwd=work_dir, PYTHON=sys.executable, **machine)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "rank 1 of 2 did not come within 2 seconds" in errors[0]
    assert errors[1:] == ["error: rank 0 ended with 1; what it had to say stands above"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune_ds.sh", "finetune_lora_fsdp.sh"])
def test_two_machines_train(make_checkpoint, work_dir, name):
    """Both are this one, each with a launcher of its own that starts one process."""
    options = ["-m", make_checkpoint(), "-d", "my data.json", "-o", "out", "--use_cpu", "True", *SHORT]
    common = {"NNODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NPROC": 1, "PYTHON": sys.executable}
    with ThreadPoolExecutor() as pool:
        machines = [
            pool.submit(launch, ROOT / "finetune" / name, *options, cwd=work_dir, NODE_RANK=rank, **common)
            for rank in range(2)
        ]
    for machine in machines:
        assert machine.result().returncode == 0, machine.result().stderr
    assert steps(work_dir / "out") == 2 and load_file(next((work_dir / "out").glob("*.safetensors")))
