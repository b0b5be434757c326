"""The documents say what is so: files exist, flags and verbs are known, samples run."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
from transformers import GenerationConfig

from qwen_vl.cli import chat, data, export, merge, plan, quantize, verify
from qwen_vl.cli import main as cli_main
from qwen_vl.data import conversations
from qwen_vl.model import QWenTokenizer
from qwen_vl.training.flags import arguments

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "NOTICE", "data/README.md")]
DOCUMENTS += sorted(ROOT.glob("docs/*.md"))
OF_THE_PAGE = {ROOT / "tests/test_docs.py", ROOT / "tests/test_checkpoint_format.py"}  # they read it as a whole
CITING = [path for folder in ("qwen_vl", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
CITING = [path for path in [ROOT / "finetune.py", *CITING, *DOCUMENTS] if path not in OF_THE_PAGE]
FOLDERS = "finetune|scripts|data|qwen_vl|tests|configs|docs"
ROOT_FILE = r"[A-Za-z][\w-]*\.(?:md|py|sh|txt|toml)"
FLAGS_OF_OTHERS = {
    "--signal",
    "--nproc_per_node",
    "--nodes",
    "--index-url",
    "--flag",
}  # the last stands for any


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request):
    """(folder, text) of one document."""
    return request.param.parent, request.param.read_text(encoding="utf-8")


def blocks(text, language):
    """The contents of the code blocks of one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


def flags_of(help_text):
    """All --flags that a help text lists."""
    return set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", help_text))


@pytest.fixture(scope="module")
def known_flags():
    """{command: its flags} for train, merge, chat, and "data VERB" for each verb."""
    return {
        "train": {name for action in arguments.make_parser()._actions for name in action.option_strings},
        "plan": flags_of(plan.make_parser().format_help()),
        "merge": flags_of(help_of(merge.main, "--help")),
        "export": flags_of(export.make_parser().format_help()),
        "quantize": flags_of(quantize.make_parser().format_help()),
        "verify": flags_of(verify.make_parser().format_help()),
        "chat": flags_of(chat.make_parser().format_help()),
        **{f"data {verb}": flags_of(help_of(data.main, verb, "--help")) for verb in data.VERBS},
    }


def help_of(main, *argv):
    """What a command prints when asked for help."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        main(list(argv))
    return shown.getvalue()


def test_files_that_are_named_exist(document):
    folder, text = document
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    lost = [link for link in links if not (folder / link).exists()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    quoted = re.findall(rf"`((?:{FOLDERS})/[\w./-]*|{ROOT_FILE})`", prose)
    lost += [name for name in quoted if not (ROOT / name).exists()]
    assert not lost, lost


def anchors(text):
    """The names by which headings of a Markdown text are linked, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_headings_that_are_linked_exist(document):
    folder, text = document
    for link, anchor in re.findall(r"\]\(([^)#:]*\.md)?#([^)]+)\)", text):
        target = (folder / link).read_text(encoding="utf-8") if link else text
        assert anchor in anchors(target), f"{link}#{anchor}"


def test_sections_of_the_format_that_are_cited_exist():
    """Code cites `docs/checkpoint_format.md section 4`, and no page that is not here."""
    page = ROOT / "docs/checkpoint_format.md"
    sections = [int(number) for number in re.findall(r"^## (\d+)\. ", page.read_text(encoding="utf-8"), re.MULTILINE)]
    assert sections == list(range(1, len(sections) + 1))
    cited, wrong = 0, []
    for path in CITING:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py" and re.search(r"\bSPEC\b", text):
            wrong.append(f"{path.relative_to(ROOT)}: cites SPEC, which is not in this repository")
        mentions = len(re.findall(rf"{page.name}(?![#)])", text)) if path.suffix == ".py" else 0
        citations = re.findall(rf"{page.name} sections? (\d+)(?:(?:-| to | and )(\d+))?", text)
        if mentions > len(citations):
            wrong.append(f"{path.relative_to(ROOT)}: names {page.name} without a section")
        numbers = {int(number) for pair in citations for number in pair if number}
        wrong += [f"{path.relative_to(ROOT)}: {page.name} has no section {n}" for n in numbers - set(sections)]
        cited += len(citations)
    assert not wrong, "\n".join(wrong)
    assert cited


def test_the_map_of_files_is_true():
    (file_map,) = [block for block in blocks((ROOT / "README.md").read_text(), "") if "finetune.py" in block]
    for line in file_map.splitlines():
        place, text = line.split(maxsplit=1)
        assert (ROOT / place).exists(), line
        inside = [name for name in re.findall(r"[\w./]+\.(?:py|sh)\b", text) if "/" not in name]
        assert all((ROOT / place / name).is_file() for name in inside), line


def test_functions_that_are_named_exist(document):
    for name, path in re.findall(r"`([\w.]+)`(?:\s+in|:)\s+`([\w/]+\.py)`", document[1]):
        assert name.split(".")[-1] in (ROOT / path).read_text(encoding="utf-8"), f"{name} in {path}"


def test_flags_that_are_named_exist(document, known_flags):
    unknown = flags_of(document[1]) - set().union(*known_flags.values(), FLAGS_OF_OTHERS)
    assert not unknown, unknown


def test_commands_that_are_shown_exist(document, known_flags):
    lines = [line for block in blocks(document[1], "sh") for line in block.splitlines() if line.strip()]
    for line in lines:
        words = shlex.split(line, comments=True)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # the environment of the command
            words.pop(0)
        program, *words = words
        if program == "sbatch":
            assert (ROOT / words[2]).is_file(), line
        elif program in ("sh", "python"):
            assert words[0] == "-m" or (ROOT / words[0]).is_file(), line
        elif program == "qwen-vl":
            assert words[0] in cli_main.VERBS, line
        elif program == ".ci/run":
            assert (ROOT / program).is_file()
        else:
            assert program.startswith(".venv/bin/"), f"{line}: teach this test the program"
        if words[:1] == ["data"]:
            assert flags_of(line) <= known_flags[" ".join(words[:2])], line
            continue
        script = " ".join([program, *words[:1]])
        named = words[0] if program == "qwen-vl" and words[0] in known_flags else None
        verb = named or ("chat" if script.endswith("chat") else "merge" if "merge" in script else "train")
        if not program.startswith(".venv") and program != "sbatch":
            assert flags_of(line) <= known_flags[verb], line


def test_the_data_sample_is_valid(tmp_path):
    (sample,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "json")
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "tests/golden/images/photo.jpg", tmp_path / "photos/dog.jpg")
    (tmp_path / "my_data.json").write_text(sample, encoding="utf-8")
    assert len(conversations.read(tmp_path / "my_data.json")) == 1


def test_the_python_samples_run(make_checkpoint, tmp_path, monkeypatch, capsys):
    """As they stand, with a tiny checkpoint in place of the published and the merged one."""
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "tests/golden/images/photo.jpg", tmp_path / "photos/dog.jpg")
    monkeypatch.chdir(tmp_path)
    samples = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    assert len(samples) == 2
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(make_checkpoint(), checkpoint)
    mute_special_tokens(checkpoint)
    for sample in samples:
        for name in ("Qwen/Qwen-VL-Chat", "output/merged"):
            sample = sample.replace(f'"{name}"', repr(str(checkpoint)))
        assert str(checkpoint) in sample
        names = {}
        exec(compile(sample, "README.md", "exec"), names)
        assert isinstance(names["answer"], str) and len(names["history"]) == 1
    assert capsys.readouterr().out


def mute_special_tokens(checkpoint):
    """Keep a checkpoint with random weights from writing tags and markers that no trained model writes."""
    tokenizer = QWenTokenizer.from_pretrained(checkpoint)
    generation = GenerationConfig.from_pretrained(checkpoint)
    generation.suppress_tokens = sorted(set(tokenizer.special_tokens.values()) - {tokenizer.im_end_id})
    generation.save_pretrained(checkpoint)
