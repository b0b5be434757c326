"""The command `qwen-vl`: its verbs, and the chat in the terminal."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import runs
from PIL import Image
from safetensors.torch import load_file, save_file

from qwen_vl.cli import data, main
from qwen_vl.model import QWenLMHeadModel, QWenTokenizer
from qwen_vl.serving import terminal_chat

IMAGES = Path(__file__).parent / "golden" / "images"
TWO_BOXES = "<ref>the sign</ref><box>(100,200),(500,700)</box><box>(0,0),(999,999)</box> 好"


@pytest.fixture
def scripted(make_checkpoint, monkeypatch):
    """A chat checkpoint whose next answers are the texts of the returned list; without any it writes what it likes."""
    folder, answers = make_checkpoint(), []
    tokenizer = QWenTokenizer.from_pretrained(folder)
    really_generate = QWenLMHeadModel.generate

    def generate(model, input_ids=None, streamer=None, **kwargs):
        if not answers:
            return really_generate(model, input_ids=input_ids, streamer=streamer, **kwargs)
        ids, _ = tokenizer.encode_message(answers.pop(0))
        for value in [input_ids, *torch.tensor([*ids, tokenizer.im_end_id]).reshape(-1, 1)]:
            streamer.put(value)
        streamer.end()
        return torch.cat([input_ids, torch.tensor([ids])], dim=1)

    monkeypatch.setattr(QWenLMHeadModel, "generate", generate)
    return folder, answers


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exit_code(argv):
    """The code that `qwen-vl argv` ends with; 0 when it just returns."""
    try:
        main.entry([str(argument) for argument in argv])
    except SystemExit as end:
        return end.code or 0
    return 0


def differ(first, second):
    """Whether two images of the same size have different pixels."""
    with Image.open(first) as a, Image.open(second) as b:
        assert a.size == b.size
        return a.convert("RGB").tobytes() != b.convert("RGB").tobytes()


def test_help_version_and_usage_errors(capsys):
    assert exit_code(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("train", "data", "merge", "chat"))
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qwen-vl ")
    assert exit_code([]) == exit_code(["fly"]) == exit_code(["chat"]) == exit_code(["merge", "--color"]) == 2
    assert "invalid choice: 'fly'" in capsys.readouterr().err


ONE_OF_SEVERAL = """
import atexit, os, sys
from torch import distributed
from qwen_vl.cli.run import run

class Last:
    def __del__(self, write=os.write):
        write(1, b"end of Python")

def main(argv):
    store = distributed.FileStore(argv[0], 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    exec(argv[1])

atexit.register(print, "registered")
sys.last = Last()
run(main)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("sys.exit(143)", 143), ("raise ValueError('no')", 1), ("raise KeyboardInterrupt", 130)],
)
def test_one_of_several_processes_leaves_out_the_end_of_python(tmp_path, end, code):
    """In which a thread of gloo that lets go of a tensor aborts the process; exit code and atexit are as ever."""
    command = [sys.executable, "-c", ONE_OF_SEVERAL, str(tmp_path / "store"), end]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (code, "registered\n"), done.stderr


def test_train_and_merge_get_their_arguments(capsys, tmp_path):
    assert exit_code(["train", "--no_such_flag"]) == 2
    assert "--no_such_flag" in capsys.readouterr().err
    assert exit_code(["merge", tmp_path, tmp_path / "out"]) == 1
    assert "no adapter_config.json" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        main.entry(["merge", str(tmp_path), str(tmp_path / "out"), "--debug"])


DEBUG_AT = {  # words of every verb that end in an error of the user; MISSING is a folder that does not exist
    "plan": ["--model", "MISSING"],
    "merge": ["MISSING", "OUT"],
    "export": ["MISSING", "OUT"],
    "quantize": ["MISSING", "OUT", "--method", "nf4"],
    "verify": ["MISSING", "MISSING"],
    "checkpoint show": ["MISSING"],
    "checkpoint export": ["MISSING", "OUT"],
    "chat": ["MISSING", "--query", "hi"],
    "evaluate": ["MISSING", "--data", "MISSING"],
    "data check": ["MISSING"],
    "data preview": ["MISSING", "--model", "MISSING"],
    "data cache": ["MISSING", "--model", "MISSING", "--vision_cache", "OUT"],
    "data convert": ["MISSING", "OUT.json", "--from", "llava"],
    "train": ["--model_name_or_path", "MISSING", "--data_path", "MISSING", "--output_dir", "OUT", "--use_cpu"],
}


@pytest.mark.parametrize("verb", DEBUG_AT)
def test_every_verb_takes_debug(verb, tmp_path, capsys):
    """Wherever it stands: without it one line, with it the exception itself."""
    words = [str(tmp_path / word) if word.isupper() else word for word in DEBUG_AT[verb]]
    words = [str(tmp_path / "OUT.json") if word == "OUT.json" else word for word in words]
    assert exit_code([*verb.split(), *words]) == 1
    errors = capsys.readouterr().err
    assert errors.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in errors
    first, *rest = verb.split()
    for line in (
        [first, *rest, *words, "--debug"],
        ["--debug", first, *rest, *words],
        [first, "--debug", *rest, *words],
    ):
        if verb == "train" and line[1] == "--debug":
            continue  # which takes a value there: transformers' own flag
        with pytest.raises((ValueError, OSError)):
            main.entry(line)


def test_every_verb_is_tested_with_debug_and_shows_it(capsys):
    verbs = {*main.VERBS, *(f"data {verb}" for verb in data.VERBS), "checkpoint show", "checkpoint export"}
    assert DEBUG_AT.keys() == verbs - {"data", "checkpoint"}
    for verb in verbs - {"train"}:
        assert exit_code([*verb.split(), "--help"]) == 0
        assert "--debug" in capsys.readouterr().out, verb


def test_command_lines_are_parsed_in_cli_alone():
    """Below it, tools are functions; scripts are commands of their own."""
    files = [path for path in (runs.ROOT / "qwen_vl").rglob("*.py") if path.parent.name != "cli"]
    wrong = [
        path.name
        for path in files
        if re.search(r"^\s*(import|from) argparse\b(?! import Namespace$)", path.read_text(), re.MULTILINE)
    ]
    assert len(files) > 80 and not wrong


def test_data_verbs(capsys, tmp_path):
    """Exit code 0 where all is well, 1 where there are errors, 2 for a verb that is none."""
    records = [{"id": 1, "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records))
    assert exit_code(["data", "check", data]) == 0
    records[0]["conversations"].pop()
    data.write_text(json.dumps(records))
    assert exit_code(["data", "check", data]) == 1
    assert capsys.readouterr().err.startswith("error: 1 error in 1 of 1 records")
    assert exit_code(["data"]) == exit_code(["data", "fly"]) == exit_code(["data", "check"]) == 2


def test_one_question_with_boxes(scripted, in_tmp_path, capsys):
    folder, answers = scripted
    answers.append(TWO_BOXES)
    image = IMAGES / "train_00.jpg"
    assert exit_code(["chat", folder, "--image", image, "--query", "Where?", "--out", "boxes.png"]) == 0
    shown = capsys.readouterr()
    assert shown.out == TWO_BOXES + "\n"  # whole and nothing else: it can go into a pipe
    assert "boxes drawn into boxes.png" in shown.err
    assert differ("boxes.png", image)


@pytest.mark.parametrize(
    "answer, note",
    [
        ("<box>(1,2),(3)</box>", "cannot be drawn"),
        ("<box>(1,2),(3,4)", "cannot be drawn"),
        ("no box at all", ""),
    ],
)
def test_an_answer_without_drawable_boxes_is_no_error(scripted, in_tmp_path, capsys, answer, note):
    folder, answers = scripted
    answers.append(answer)
    assert exit_code(["chat", folder, "--image", IMAGES / "rgb.png", "--query", "Where?"]) == 0
    shown = capsys.readouterr()
    assert shown.out == answer + "\n" and note in shown.err
    assert not list(in_tmp_path.iterdir())


def test_a_conversation_survives_mistakes(scripted, in_tmp_path, capsys, monkeypatch):
    folder, answers = scripted
    (in_tmp_path / "answer_boxes_1.png").write_bytes(b"of another day")
    Image.open(IMAGES / "photo.jpg").save("my photo.jpg")
    asked = []
    really_stream = QWenLMHeadModel.chat_stream

    def chat_stream(model, tokenizer, query, history=None, **kwargs):
        asked.append((query, list(history), kwargs["system"]))
        return really_stream(model, tokenizer, query, history=history, **kwargs)

    monkeypatch.setattr(QWenLMHeadModel, "chat_stream", chat_stream)
    answers += ["first", TWO_BOXES, "<box>(0,0),(9,9)</box>"]
    lines = ["", "one", "/image gone.png", "/jump", "<img> never closed", "/image 'my photo.jpg'", "two", "/clear", "3"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, "/quit", "unheard"])))
    assert exit_code(["chat", folder, "--image", IMAGES / "rgb.png", "--system", "Be brief."]) == 0

    image_one = f"Picture 1: <img>{IMAGES / 'rgb.png'}</img>\none"
    image_two = "Picture 2: <img>my photo.jpg</img>\ntwo"
    assert asked == [
        (image_one, [], "Be brief."),
        ("<img> never closed", [(image_one, "first")], "Be brief."),
        (image_two, [(image_one, "first")], "Be brief."),
        ("3", [], "Be brief."),
    ]
    errors = capsys.readouterr().err
    assert "error: image 'gone.png': no such file" in errors
    assert "no command '/jump'" in errors and "error: unclosed <img>" in errors
    assert "boxes drawn into answer_boxes_2.png" in errors  # the first name was taken
    assert differ("answer_boxes_2.png", "my photo.jpg")
    assert "no image to draw them on" in errors  # the image was forgotten with the conversation


def test_the_model_answers_until_standard_input_ends(make_checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nand again\n"))
    assert exit_code(["chat", make_checkpoint(), "--device", "cpu", "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.count("You: ") == 3


@pytest.mark.parametrize("arguments", [["--query", "hi"], []])
def test_weights_that_are_damaged_end_the_chat_with_an_error(arguments, make_checkpoint, tmp_path, monkeypatch, capsys):
    shutil.copytree(make_checkpoint(), tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["transformer.h.0.mlp.w1.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert exit_code(["chat", tmp_path / "model", "--device", "cpu", *arguments]) == 1
    shown = capsys.readouterr()
    assert "!" not in shown.out
    assert (
        shown.err.strip().splitlines()[-1].startswith("error: the logits are not finite (the weights are torch.float32")
    )


def test_an_interrupt_stops_the_answer_only(capsys, monkeypatch):
    class Interrupted(terminal_chat.Session):
        def ask(self, text):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    terminal_chat.converse(Interrupted(None, None), "boxes.png")
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--image", "gone.png"], "gone.png"),
        (["--out", "boxes.pgn"], "--out boxes.pgn: not an image format"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
    ],
)
def test_wrong_arguments_are_one_line(make_checkpoint, capsys, arguments, message):
    assert exit_code(["chat", make_checkpoint(), "--query", "hi", *arguments]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last


def test_a_base_model_says_that_it_does_not_chat(make_checkpoint, capsys):
    assert exit_code(["chat", make_checkpoint("raw"), "--query", "hi"]) == 1
    assert "a base model" in capsys.readouterr().err


def test_an_adapter_folder_chats_like_base_plus_adapter(make_checkpoint, tmp_path):
    """Its base is found and checked, and the answer's logits are those of the adapted model."""
    from peft import LoraConfig, get_peft_model

    from qwen_vl.checkpoint import loading
    from qwen_vl.serving.engine import load

    base = make_checkpoint("raw")
    adapted = get_peft_model(
        loading.load_model(base), LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["lm_head"])
    )
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(tmp_path)
    record = {"name": str(base), "fingerprint": loading.fingerprint(base)}
    (tmp_path / "base.json").write_text(json.dumps(record))
    model, tokenizer = load(tmp_path, device="cpu")
    ids = torch.tensor([tokenizer.encode("Hello, who are you?")])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, adapted.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    assert isinstance(next(model.chat_stream(tokenizer, "hi")), str)
