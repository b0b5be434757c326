"""The documents say what is so: files exist, flags and verbs are known, samples run."""

import ast
import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import make_data  # scripts/quickstart is on the path (conftest.py)
import pytest
from helpers.adapters import write_adapter
from helpers.benchmark_files import IMAGE, write, write_layout
from helpers.openai_server import completion, serving
from helpers.runs import script
from transformers import GenerationConfig

import openai_api
import web_demo_mm
from qwen_vl.cli import main as cli_main
from qwen_vl.cli.evaluate import COMPARE
from qwen_vl.data import conversations
from qwen_vl.evaluation.benchmarks import BENCHMARKS
from qwen_vl.evaluation.benchmarks.loading import layouts_of
from qwen_vl.model import QWenTokenizer

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "NOTICE")]
DOCUMENTS += sorted(ROOT.glob("docs/*.md"))
OF_THE_PAGE = {ROOT / "tests/test_docs.py", ROOT / "tests/test_checkpoint_format.py"}  # they read it as a whole
CITING = [path for folder in ("qwen_vl", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
CITING = [path for path in [ROOT / "finetune.py", *CITING, *DOCUMENTS] if path not in OF_THE_PAGE]
FOLDERS = "finetune|scripts|data|qwen_vl|tests|configs|docs"
ROOT_FILE = r"[A-Za-z][\w-]*\.(?:md|py|sh|txt|toml)"
FLAGS_OF_VLLM = {  # tests/serving/test_other_engines.py gives the commands to vLLM's own parser
    "--trust-remote-code",
    "--max-model-len",
    "--limit-mm-per-prompt",
    "--tensor-parallel-size",
    "--data-parallel-size",
    "--allowed-media-domains",
    "--api-key",
    "--host",
    "--lora-modules",
}
FLAGS_OF_OTHERS = FLAGS_OF_VLLM | {
    "--signal",
    "--nproc_per_node",
    "--nodes",
    "--index-url",
    "--no-build-isolation",
    "--version",
    "--flag",
}  # the last stands for any


@pytest.fixture(scope="module")
def documents():
    """Return [(name, folder, text)] of all documents, without what they say of other projects."""
    found = [(str(path.relative_to(ROOT)), path.parent, of_us(path)) for path in DOCUMENTS]
    assert len(found) >= 12
    return found


def of_us(path):
    """Return a page; of `migrating` without the left columns of its tables."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^\| [^|]*\|", "|", text, flags=re.MULTILINE) if path.name.startswith("migrating") else text


def blocks(text, language):
    """Return the contents of the code blocks of one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


def flags_of(help_text):
    """Return all --flags that a help text lists."""
    return set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", help_text))


@pytest.fixture(scope="module")
def known_flags():
    """Return {words of a command: its flags} for every command."""
    reference = script("make_reference")
    known = {" ".join(words): flags_of(reference.parser_of(words).format_help()) for words in reference.commands()}
    known["openai_api.py"] = flags_of(help_of(openai_api.main, "--help"))
    known["web_demo_mm.py"] = known["demo"] | flags_of(help_of(web_demo_mm.main, "--help"))
    return known


def help_of(main, *argv):
    """Return what a command prints when asked for help."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        main(list(argv))
    return shown.getvalue()


def prose(text):
    """Return a document without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def test_files_that_are_named_exist(documents):
    lost, num_links, num_quoted = [], 0, 0
    for name, folder, text in documents:
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        quoted = re.findall(rf"`((?:{FOLDERS})/[\w./-]*|{ROOT_FILE})`", prose(text))
        num_links, num_quoted = num_links + len(links), num_quoted + len(quoted)
        lost += [f"{name}: {link}" for link in links if not (folder / link).exists()]
        lost += [f"{name}: {file}" for file in quoted if not (ROOT / file).exists()]
    assert not lost, "\n".join(lost)
    assert num_links >= 20 and num_quoted >= 20


def anchors(text):
    """Return the names by which headings of a Markdown text are linked: `{#name}`, or as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE)
    given = [re.search(r" \{#([\w-]+)\}$", heading) for heading in headings]
    made = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {name[1] if name else own for name, own in zip(given, made, strict=True)}


def test_headings_that_are_linked_exist(documents):
    lost, checked = [], 0
    for name, folder, text in documents:
        for link, anchor in re.findall(r"\]\(([^)#:]*\.md)?#([^)]+)\)", text):
            checked += 1
            target = (folder / link).read_text(encoding="utf-8") if link else text
            lost += [f"{name}: {link}#{anchor}"] * (anchor not in anchors(target))
    assert not lost, "\n".join(lost)
    assert checked >= 10


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


def file_map():
    """Return {place: what is said of it} for the lines of the map of files."""
    page = (ROOT / "docs/how_it_works.md").read_text(encoding="utf-8")
    maps = [text for text in blocks(page, "") if "finetune.py" in text]
    (lines,) = (text.splitlines() for text in maps)
    return dict(line.split(maxsplit=1) for line in lines)


def test_the_map_of_files_is_true():
    places, checked = file_map(), 0
    for place, text in places.items():
        assert (ROOT / place).is_dir() == place.endswith("/") and (ROOT / place).exists(), place
        for name in re.findall(r"(?<![\w/])[\w.]+(?:\.(?:py|sh|md)\b|/)", text):
            known = (ROOT / place / name) if not name.endswith("/") or (ROOT / place / name).exists() else ROOT / name
            assert known.is_dir() if name.endswith("/") else known.is_file(), f"{place} {name}"
            checked += 1
    assert len(places) >= 15 and checked >= 25


def test_the_map_of_files_is_whole():
    """Every room of the package has a line, and every room inside a room is named in it."""
    places, rooms = file_map(), sorted(path.parent for path in ROOT.glob("qwen_vl/**/__init__.py"))
    assert len(rooms) > 15
    for room in rooms[1:]:
        line = f"{room.relative_to(ROOT)}/"
        within = places.get(f"{room.parent.relative_to(ROOT)}/", "")
        assert line in places or f"{room.name}/" in within.split(), f"{line}: the map of files does not have it"


def definitions(tree, prefix=""):
    """Return the dotted names of everything that a module or class defines in its own body."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            names |= definitions(node, f"{prefix}{node.name}.")
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            names |= {prefix + part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


def test_functions_that_are_named_exist(documents):
    lost, checked = [], 0
    for document, _, text in documents:
        for name, path in re.findall(r"`([\w.]+)`(?:\s+in|:)\s+`([\w/]+\.py)`", text):
            checked += 1
            if name not in definitions(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
                lost.append(f"{document}: `{name}` in `{path}`")
    assert not lost, "\n".join(lost)
    assert checked >= 6


def test_new_names_of_moved_modules_exist():
    """The right column of the table in CHANGELOG names modules; `.name` stands for a sibling of the one before."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^  \| `qwen_vl\.[^|]*\| ([^|]*) \|$", text, flags=re.MULTILINE)
    assert len(rows) >= 20
    for row in rows:
        room = ""
        for name in re.findall(r"`([\w.]+)`", row):
            module = room + name if name.startswith(".") else name
            room = module.rpartition(".")[0]
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_flags_that_are_named_exist(documents, known_flags):
    known, checked, wrong = set().union(*known_flags.values(), FLAGS_OF_OTHERS), 0, []
    for name, _, text in documents:
        checked += len(flags_of(text))
        wrong += [f"{name}: {flag}" for flag in sorted(flags_of(text) - known)]
    assert not wrong, "\n".join(wrong)
    assert checked >= 100


def check_command(line, known_flags):
    """Check that program, file, verb and flags of one line of a shell example exist."""
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
    elif program == "curl":  # tests/serving/test_serving_docs.py sends what it would send
        return
    elif program == "pip":
        assert re.fullmatch(r"install qwen-vl\[\w+\]", " ".join(words)), line
        return
    elif program == ".ci/run":
        assert (ROOT / program).is_file()
    elif program == "vllm":
        assert words[0] == "serve" and flags_of(line) <= FLAGS_OF_VLLM, line
        return
    else:
        assert program.startswith(".venv/bin/"), f"{line}: teach this test the program"
    if words[:1] == ["data"]:
        assert flags_of(line) <= known_flags[" ".join(words[:2])], line
        return
    script = " ".join([program, *words[:1]])
    named = words[0] if program in ("qwen-vl", "python") and words[0] in known_flags else None
    other = "evaluate" if "evaluate" in script else "train"
    verb = named or ("chat" if script.endswith("chat") else "merge" if "merge" in script else other)
    if not program.startswith(".venv") and program != "sbatch":
        assert flags_of(line) <= known_flags[verb], line


def test_commands_that_are_shown_exist(documents, known_flags):
    shown = [block for _, _, text in documents for block in blocks(text, "sh")]
    lines = [line for block in shown for line in block.splitlines() if line.strip()]
    assert len(lines) >= 40
    for line in lines:
        check_command(line, known_flags)


def test_the_data_sample_is_valid(tmp_path):
    (sample,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "json")
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "tests/golden/images/photo.jpg", tmp_path / "photos/dog.jpg")
    (tmp_path / "my_data.json").write_text(sample, encoding="utf-8")
    assert len(conversations.read(tmp_path / "my_data.json")) == 1


@pytest.mark.parametrize("page", ["index.md", "index.zh.md"])
def test_the_python_samples_run(page, make_checkpoint, tmp_path, monkeypatch, capsys):
    """As they stand, with a tiny checkpoint in place of the published and the merged one."""
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "tests/golden/images/photo.jpg", tmp_path / "photos/dog.jpg")
    monkeypatch.chdir(tmp_path)
    samples = blocks((ROOT / "docs" / page).read_text(encoding="utf-8"), "python")
    assert len(samples) == 2
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(make_checkpoint(), checkpoint)
    mute_special_tokens(checkpoint)
    for sample in samples:
        for name in ("Qwen/Qwen-VL-Chat", "output/merged"):
            sample = sample.replace(f'"{name}"', repr(str(checkpoint)))
        assert str(checkpoint) in sample
        names = {}
        exec(compile(sample, page, "exec"), names)
        assert isinstance(names["answer"], str) and len(names["history"]) == 1
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", ["evaluation.md", "evaluation.zh.md"])
def test_the_benchmarks_in_the_document_are_those_of_the_registry(page):
    """`python scripts/benchmark_table.py` prints the three parts."""
    text, tables = (ROOT / "docs" / page).read_text(encoding="utf-8"), script("benchmark_table")
    for part in (tables.settings_table(), tables.prompts_block(), tables.files_list()):
        assert part in text, f"docs/{page} lacks what the registry has:\n{part}"
    assert text.count("\n| `") >= len(BENCHMARKS) >= 40


def test_the_readmes_know_how_many_benchmarks_there_are():
    for name, words in (("README.md", "{} benchmarks"), ("README_zh.md", "{} 个评测集")):
        assert words.format(len(BENCHMARKS)) in (ROOT / name).read_text(encoding="utf-8")


def test_the_values_in_the_document_are_what_the_metrics_give():
    (sample,) = blocks((ROOT / "docs/evaluation.md").read_text(encoding="utf-8"), "python")
    first, _, calls = sample.partition("\n\n")
    names, checked = {}, 0
    exec(first, names)
    for line in calls.splitlines():
        call, _, value = line.rpartition("  # ")
        given, wanted = eval(call, names), ast.literal_eval(value)
        assert given == (wanted if isinstance(wanted, str) else pytest.approx(wanted, abs=1e-4)), line
        checked += 1
    assert checked >= 8


@pytest.fixture
def evaluation_folder(make_checkpoint, make_int4_checkpoint, tmp_path, monkeypatch):
    """Return a folder with all that the commands of docs/evaluation.md name, and go there."""
    monkeypatch.chdir(tmp_path)
    for name in ("output/merged", "Qwen/Qwen-VL-Chat", "output/quickstart/merged"):
        shutil.copytree(make_checkpoint(), tmp_path / name)
    shutil.copytree(make_int4_checkpoint(), tmp_path / "output/int4")
    write_adapter(make_checkpoint(), tmp_path / "output/lora")
    make_data.build(tmp_path / "output/quickstart/data", limit=6)
    test = tmp_path / "output/quickstart/data/test.json"
    test.write_text(json.dumps(conversations.read(test)[::20]), encoding="utf-8")
    shutil.copytree(ROOT / "data/examples", tmp_path, dirs_exist_ok=True)
    talks = conversations.read(tmp_path / "conversations.json")[:6]
    (tmp_path / "held_out.json").write_text(json.dumps(talks), encoding="utf-8")
    for name in ("docvqa_val", "refcoco_testA", "mme", "okvqa_val", "scienceqa_test_img", "touchstone_en"):
        benchmark = BENCHMARKS[name]
        write_layout(benchmark, layouts_of(benchmark)[0], tmp_path / "eval_data")
    shots = [{"image": IMAGE, "question": "what?", "question_id": n, "answer": "red"} for n in range(5)]
    write(tmp_path / "eval_data/data/okvqa/okvqa_train.jsonl", shots)
    return tmp_path


def evaluation_commands():
    """Return the words after `evaluate` of every command that README and docs/evaluation.md show."""
    found = []
    for name in ("README.md", "docs/evaluation.md"):
        for line in "\n".join(blocks((ROOT / name).read_text(encoding="utf-8"), "sh")).splitlines():
            match = re.match(r"(?:qwen-vl evaluate|sh scripts/evaluate.sh) (.*)", line)
            found += [shlex.split(match[1], comments=True)] if match else []
    return found


def reply(path, body):
    """Return what a server of one model, which is a judge as well, replies."""
    if path.endswith("/models"):
        return {"data": [{"id": "org/served"}]}
    return completion("7 8" if "[System]" in str(body) else "red")


def test_the_commands_of_the_evaluation_run(evaluation_folder):
    """In their order, in one process each (the launcher has tests of its own), with short answers to save time."""
    commands = evaluation_commands()
    assert len(commands) >= 12
    with serving(reply) as (address, _):
        for words in commands:
            words = [re.sub(r"http://localhost:\d+", address, word) for word in words]
            short = [] if COMPARE in words[:1] else ["--device", "cpu", "--max_new_tokens", "12"]
            cli_main.main(["evaluate", *words, *short])
    results = evaluation_folder / "results"
    runs = {path.parent.name for path in results.glob("*/*/scores.json")}
    assert {
        "data-held_out+max12",
        "data-test+max12",
        "mme+max12",
        "okvqa_val+max12+4shot",
        "touchstone_en+max12",
    } <= runs
    assert len(list(results.glob("*/model.json"))) >= 5
    for kind in ("md", "csv", "json", "html"):
        assert (results / f"report.{kind}").stat().st_size > 100, kind


def mute_special_tokens(checkpoint):
    """Keep a checkpoint with random weights from writing tags and markers that no trained model writes."""
    tokenizer = QWenTokenizer.from_pretrained(checkpoint)
    generation = GenerationConfig.from_pretrained(checkpoint)
    generation.suppress_tokens = sorted(set(tokenizer.special_tokens.values()) - {tokenizer.im_end_id})
    generation.save_pretrained(checkpoint)
