"""The layers: who may import whom, what the model may import, and how long a file or function may become."""

import ast
import re
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "qwen_vl"
MODEL_FILES = sorted((PACKAGE / "model").glob("*.py"))
MODEL_LIBRARIES = {"torch", "transformers", "tiktoken", "numpy", "PIL"}
SCRIPTS = [*ROOT.glob("*.py"), *ROOT.glob("scripts/**/*.py"), *ROOT.glob("finetune/**/*.py")]
SOURCES = sorted([*PACKAGE.rglob("*.py"), *SCRIPTS])

# What each room of the package may import from the others. Downward only, so the table has no circle.
MAY_IMPORT = {
    "model": set(),
    "terminal": set(),
    "data": {"model", "terminal"},
    "evaluation": {"model", "terminal", "data"},
    "training": {"model", "terminal", "data"},
    "export": {
        "model",
        "terminal",
        "data",
        "evaluation",
        "training",
    },  # data: prompts; evaluation: answers
    "serving": {"model", "training", "export"},
    "entry": set(),
    "quickstart": {"model", "data", "evaluation", "training", "export", "entry", "finetune"},
    "cli": {"model", "data", "evaluation", "training", "export", "serving", "entry", "finetune"},
}
# Its CPU runs, and its checkpoints, whose parts only its own functions can join; else it is reached by transformers.
KNOW_DEEPSPEED = {PACKAGE / "training" / "engines.py", PACKAGE / "export" / "checkpoint.py"}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80  # the aim is 50; the story of a run in finetune.py is the longest


def name_of(path):
    return str(path.relative_to(ROOT))


def imports(path):
    """(line number, module, level, names) of every import statement of a file; level counts leading dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, 0, []) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "", node.level, [alias.name for alias in node.names]


def room_of(path):
    """The room of a package file: the sub-package, or the module directly in the package."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path):
    """(line number, room) for every import of this project by a file; `finetune` counts as a room."""
    for line, module, level, names in imports(path):
        parts = module.split(".")
        if level:  # resolve the dots against the file's own package
            folder = path.parent.relative_to(ROOT).parts
            parts = [*folder[: len(folder) - level + 1], *(parts if module else [])]
        if parts[0] == "finetune":
            yield line, "finetune"
        if parts[0] == "qwen_vl":
            yield from ((line, room) for room in (parts[1:2] or names))


def test_imports_point_downward():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        assert room in MAY_IMPORT, f"{name_of(path)}: give the new room {room!r} its row in MAY_IMPORT"
        above = [(line, other) for line, other in imported_rooms(path) if other not in MAY_IMPORT[room] | {room}]
        wrong += [f"{name_of(path)}:{line} imports {other}" for line, other in above]
    assert not wrong, "\n".join(wrong)


def test_the_table_itself_has_no_circle():
    done = {"finetune"}
    while len(done) <= len(MAY_IMPORT):
        ready = {room for room, below in MAY_IMPORT.items() if room not in done and below <= done}
        assert ready, f"a circle among {sorted(set(MAY_IMPORT) - done)}"
        done |= ready


def test_heavy_libraries_stay_in_their_rooms():
    """Adapters and quantised weights are made and merged in two rooms; deepspeed in KNOW_DEEPSPEED alone."""
    of_two_rooms, wrong = {"peft", "gptqmodel", "optimum", "bitsandbytes", "logbar"}, []
    for path in SOURCES:
        allowed = path.is_relative_to(PACKAGE / "training") or path.is_relative_to(PACKAGE / "export")
        for line, module, level, _ in imports(path):
            library = module.split(".")[0] if not level else ""
            misplaced = library == "deepspeed" and path not in KNOW_DEEPSPEED
            if misplaced or (library in of_two_rooms and not allowed):
                wrong.append(f"{name_of(path)}:{line} imports {library}")
    assert not wrong, "\n".join(wrong)


def test_one_module_draws_bars_and_tables():
    """Only `qwen_vl/terminal.py` uses a library for progress bars, or aligns the cells of a table by hand."""
    by_hand, wrong = re.compile(r"\.[lr]just\(|\|\s*-{3}"), []
    for path in SOURCES:
        if path == PACKAGE / "terminal.py":
            continue
        used = {module.split(".")[0] for _, module, level, _ in imports(path) if not level} & {"tqdm", "rich"}
        wrong += [f"{name_of(path)} imports {library}" for library in sorted(used)]
        lines = path.read_text(encoding="utf-8").splitlines()
        wrong += [f"{name_of(path)}:{n}: a table" for n, line in enumerate(lines, start=1) if by_hand.search(line)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_a_model_file_can_travel_inside_a_checkpoint(path):
    """Its imports are those that transformers' copier of remote code follows, and nothing else looks like one."""
    siblings, libraries = set(), set()
    for line, module, level, _ in imports(path):
        if level:
            assert level == 1 and module and "." not in module, f"{path.name}:{line}: write `from .sibling import name`"
            assert (path.parent / f"{module}.py").is_file(), f"{path.name}:{line}: there is no sibling {module}"
            siblings.add(module)
        else:
            libraries.add(module.split(".")[0])
    foreign = libraries - MODEL_LIBRARIES - set(sys.stdlib_module_names)
    # A library beyond the list is optional or absent: inside try .. except ImportError, where the copier skips it.
    assert not foreign & set(get_imports(path)), f"{path.name}: {foreign} may only be imported inside try .. except"
    assert set(get_imports(path)) <= libraries | siblings, f"{path.name}: a docstring or string looks like an import"
    assert set(get_relative_imports(path)) == siblings, f"{path.name}: the copier does not see the same siblings"


def test_model_docstrings_hold_no_import_lines():
    wrong = []
    for path in MODEL_FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        looks = r"^\s*(import\s+\S+|from\s+\S+\s+import\b.*)$"
        wrong += [f"{path.name}:{node.lineno}" for node in strings if re.search(looks, node.value, flags=re.MULTILINE)]
    assert not wrong, wrong


def test_the_launchers_folder_is_no_package():
    assert not (ROOT / "finetune" / "__init__.py").exists(), "finetune/__init__.py would shadow finetune.py"


def test_files_and_functions_stay_readable():
    long = []
    for path in [*SOURCES, *sorted(p for p in (ROOT / "tests").rglob("*.py") if "golden" not in p.parts)]:
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > MAX_FILE_LINES:
            long.append(f"{name_of(path)}: {lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES:
                long.append(f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines, at most {MAX_FUNCTION_LINES}")
    assert not long, "\n".join(long)
