"""Training runs inside the test process, and what they write."""

import gc
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file

import finetune
from qwen_vl.adapters import build
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint import loading
from qwen_vl.data import build as data_loading
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.collator import ConversationCollator

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
NOISE = re.compile(  # of imported libraries: missing kernels, what they think of one another, bars, banners
    r"Failed to load|_pytree|Warning|\[transformers\]|it/s\]|accelerator to|GPT-QModel|^INFO|^WARN|^W\d{4} "
)
TEXTS = [  # answers of different lengths, some with an image
    ("images/train_00.jpg", "What?", "A red square."),
    (None, "你好", "我是Qwen-VL,一个支持视觉输入的大模型。"),
    ("images/train_01.jpg", "框出圆", "<ref>圆</ref><box>(10,20),(300,400)</box>"),
    (None, "1+1?", "2"),
    ("images/train_02.jpg", "Describe it, please.", "A small green circle below two lines, right of a blue shape."),
    (None, "Sure?", "Yes, quite sure, as sure as one can be."),
    ("images/train_03.jpg", "Color?", "Blue"),
    ("images/train_04.jpg", "Where?", "左边"),
]


def script(name):
    """Return a script of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_data(folder, samples=TEXTS):
    """Return the path of a data file with one exchange for each (image or None, question, answer)."""
    records = []
    for index, (image, question, answer) in enumerate(samples):
        image = f"Picture 1: <img>{image}</img>\n" if image else ""
        turns = [{"from": "user", "value": image + question}, {"from": "assistant", "value": answer}]
        records.append({"id": f"sample-{index}", "conversations": turns})
    path = Path(folder) / "data.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def command(model, output_dir, *flags, **settings):
    """Return the command line of a run: 4 steps of 2 samples unless the settings say otherwise."""
    output_dir = Path(output_dir)
    defaults = {
        "model_name_or_path": model,
        "data_path": settings.get("data_path") or write_data(output_dir.parent),
        "image_folder": GOLDEN,
        "output_dir": output_dir,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "use_cpu": True,
    }
    return [*(str(word) for name, value in (defaults | settings).items() for word in (f"--{name}", value)), *flags]


@cache
def freeze_imports():
    """Exempt imported objects from garbage collection: accelerate's takes more than half of so short a run."""
    import_module("qwen_vl.training.recipe")
    gc.collect()
    gc.freeze()


def run(argv):
    """Return the output folder after a run of finetune.main with these arguments."""
    freeze_imports()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for others
    try:
        finetune.main(argv)
    finally:
        torch.set_num_threads(threads)
    return Path(argv[argv.index("--output_dir") + 1])


def train(model, output_dir, *flags, **settings):
    """Return the output folder after a run of finetune.main with the `command` of these arguments."""
    return run(command(model, output_dir, *flags, **settings))


def losses(output_dir, key="loss"):
    """Return the logged training losses of a run, step by step, or the values of another key of its log."""
    history = json.loads((Path(output_dir) / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry[key] for entry in history if key in entry]


def evaluate(folder, data, *, base=None):
    """Return the mean loss over all targets of a data file, of a saved model or, with `base`, of an adapter."""
    model = loading.load_model(base or folder).eval()
    model = build.load_adapters(model, Adapter.open(folder)) if base else model
    tokenizer = loading.load_tokenizer(base or folder)
    reading = data_loading.SourceOptions(cache="none", image_folder=GOLDEN)
    samples = data_loading.load_file(data, tokenizer, EncodeOptions(2048, "error"), reading)
    batch = ConversationCollator(tokenizer, model.config.visual["image_size"])(
        [samples[i] for i in range(len(samples))]
    )
    inputs = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        return model(**inputs, per_target_loss=True).loss.double().mean().item()


def weights(folder):
    """Return all tensors that a model or adapter folder holds, by name."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    assert tensors, f"{folder} holds no weights"
    return tensors


def largest_difference(first, second):
    """Return the largest absolute difference between two sets of tensors with the same names."""
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def equal(first, second):
    """Return whether two sets of tensors are the same, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def noise(said):
    """Return the lines of a process's output that come from imported libraries and concern no user."""
    return [line for line in said.splitlines() if NOISE.search(line)]


def python_elsewhere(folder, *words):
    """Run `python WORDS` in a folder without this project, and return the finished process. It has to succeed."""
    # -S, and one path instead: the libraries, but no editable installation of this project.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    site = {"PYTHONPATH": str(Path(torch.__file__).parents[1])}
    environment = kept | site | {"HF_HOME": str(Path(folder, "hf")), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-S", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
