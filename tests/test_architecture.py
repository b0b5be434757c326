"""The layers: who may import whom, what the model may import, and how long a file or function may become."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from qwen_vl.model import QWenConfig, QWenLMHeadModel

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "qwen_vl"
MODEL_FILES = sorted((PACKAGE / "model").glob("*.py"))
MODEL_LIBRARIES = {"torch", "transformers", "tiktoken", "numpy", "PIL"}
SCRIPTS = [*ROOT.glob("*.py"), *ROOT.glob("scripts/**/*.py"), *ROOT.glob("finetune/**/*.py")]
KNOW_THE_NETWORK = (PACKAGE / "model", PACKAGE / "families")
OTHER_MEANINGS = {"weight", "bias", "query", "drop", "h", "mlp"}  # the last is a word of --lora_target_modules as well
SOURCES = sorted([*PACKAGE.rglob("*.py"), *SCRIPTS])
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if "golden" not in path.parts)

# What each room of the package may import from the others. Downward only, so the table has no circle.
LAYERS = (  # a room may import those of earlier layers, and nothing of its own layer but itself
    ("model", "terminal", "startup", "files", "hubs"),
    ("families",),
    ("checkpoint",),
    ("adapters", "data"),
    ("evaluation",),
    ("training",),
    ("export",),
    ("serving",),
    ("finetune",),
    ("cli",),
)
# Rooms that may import less than the layers below them.
OF_MODEL_ALONE = {"data": {"model", "terminal", "startup", "files", "hubs"}}
MAY_IMPORT = {
    room: OF_MODEL_ALONE.get(room, {below for layer in LAYERS[:i] for below in layer} if i else set())
    for i, layer in enumerate(LAYERS)
    for room in layer
}
# Its CPU runs, and its checkpoints, whose parts only its own functions can join; else it is reached by transformers.
KNOW_DEEPSPEED = {PACKAGE / "training" / "distributed" / "engines.py", PACKAGE / "export" / "parts.py"}


def name_of(path):
    return str(path.relative_to(ROOT))


def imports(path):
    """Yield (line number, module, level, names) of every import statement of a file; level counts leading dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, 0, []) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "", node.level, [alias.name for alias in node.names]


def room_of(path):
    """Return the room of a package file: the sub-package, or the module directly in the package."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def documented(tree):
    """Return the nodes of all docstrings of a syntax tree."""
    with_docstring = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, with_docstring)]
    return {node.body[0].value for node in nodes if ast.get_docstring(node) is not None}


def modules_in_strings(text):
    """Return [(line number, module)] of the modules that strings name, as for `import_module` and `monkeypatch`.

    A name with a computed part, such as f"qwen_vl.{room}", is returned as "qwen_vl.?". Docstrings are skipped.
    """
    tree, found = ast.parse(text), []
    said = documented(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in said:
            names = re.findall(r"(?<![\w./])qwen_vl\.(?:\w+(?:\.\w+)*|(?=$))", node.value)
            names += [node.value] if re.fullmatch(r"finetune(\.\w+)?", node.value) else []
            found += [(node.lineno, name + "?" * name.endswith(".")) for name in names if name != "finetune.py"]
    return found


def resolved(path, module, level):
    """Return the parts of an imported module's name; dots are resolved against the file's own package."""
    parts = module.split(".") if module else []
    folder = path.parent.relative_to(ROOT).parts
    return [*folder[: len(folder) - level + 1], *parts] if level else parts


def imported_files(path):
    """Return the files of the package that a file imports, packages' own files left out."""
    found = [(resolved(path, module, level), names) for _, module, level, names in imports(path)]
    places = {ROOT.joinpath(*parts, name).with_suffix(".py") for parts, names in found for name in ("", *names)}
    return {file for file in places if file.is_file() and PACKAGE in file.parents}


def imported_rooms(path):
    """Yield (line number, room) for every import of this project by a file; `finetune` counts as a room."""
    for line, module, level, names in imports(path):
        parts = resolved(path, module, level)
        if parts[0] == "finetune":
            yield line, "finetune"
        if parts[0] == "qwen_vl":
            yield from ((line, room) for room in (parts[1:2] or names))
    for line, module in modules_in_strings(path.read_text(encoding="utf-8")):
        room = module.removeprefix("qwen_vl.").split(".")[0]
        if room in {"?", "finetune"} or (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file():
            yield line, room


def test_no_files_import_each_other():
    """Check that there is no circle, imports inside functions and for types included."""
    graph = {path: imported_files(path) for path in PACKAGE.rglob("*.py")}
    assert sum(map(len, graph.values())) > len(graph)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_imports_point_downward():
    wrong, checked = [], 0
    for path in PACKAGE.rglob("*.py"):
        room, checked = room_of(path), checked + 1
        if room == "__init__":
            continue
        assert room in MAY_IMPORT, f"{name_of(path)}: give the new room {room!r} its row in MAY_IMPORT"
        above = [(line, other) for line, other in imported_rooms(path) if other not in MAY_IMPORT[room] | {room}]
        wrong += [f"{name_of(path)}:{line} imports {other}" for line, other in above]
    assert not wrong, "\n".join(wrong)
    assert checked > 100


@pytest.mark.parametrize(
    "text, expected",
    [
        ('import_module("qwen_vl.training.trainer").main()', ["qwen_vl.training.trainer"]),
        ('V = {"plan": ("qwen_vl.cli.plan", "all"), "train": ("finetune", "it")}', ["qwen_vl.cli.plan", "finetune"]),
        ('monkeypatch.setattr("qwen_vl.cli.run.entry", None)', ["qwen_vl.cli.run.entry"]),
        ('import_module(f"qwen_vl.{room}")', ["qwen_vl.?"]),
        ('import_module("qwen_vl." + room)', ["qwen_vl.?"]),
        ('"""See qwen_vl.training.trainer."""', []),
        ('open("qwen_vl/training/trainer.py"); open("finetune.py")', []),
        ('version("qwen_vl")', []),
    ],
)
def test_modules_in_strings_are_seen(text, expected):
    assert [name for _, name in modules_in_strings(text)] == expected


def defined(path):
    """Return the names that a module binds at its top level, in `if` and `try` as well."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), set()
    inside = [node for node in tree.body if isinstance(node, (ast.If, ast.Try))]
    for node in [*tree.body, *(part for block in inside for part in ast.walk(block))]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


def is_known(name):
    """Check whether a dotted name stands for a module of this project, or for something that one defines."""
    place, parts = ROOT, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place = place / parts.pop(0)
    file = place / "__init__.py"
    if parts and (place / f"{parts[0]}.py").is_file():
        file = place / f"{parts.pop(0)}.py"
    return file.is_file() and (not parts or parts[0] in defined(file))


def test_strings_name_modules_that_exist():
    """A string is not followed when a module moves: it must name a module, or something that the module defines."""
    wrong, checked = [], 0
    for path in [*SOURCES, *TESTS]:
        if path == Path(__file__).resolve():
            continue
        for line, name in modules_in_strings(path.read_text(encoding="utf-8")):
            checked += 1
            is_computed = name.endswith("?") and not path.is_relative_to(PACKAGE)
            if name != "finetune" and not is_computed and not is_known(name):
                wrong.append(f"{name_of(path)}:{line} names {name}, which does not exist")
    assert not wrong, "\n".join(wrong)
    assert checked >= 10


def test_heavy_libraries_stay_in_their_rooms():
    """Adapters, quantized weights and engines are known where they are made and merged."""
    rooms_of = {"peft": {"adapters", "training", "export"}, "deepspeed": set()}
    quantizers = ("gptqmodel", "optimum", "bitsandbytes", "logbar")
    rooms_of |= {library: {"checkpoint", "training", "export"} for library in quantizers}
    wrong = []
    for path in SOURCES:
        room = room_of(path) if path.is_relative_to(PACKAGE) else "scripts"
        for line, module, level, _ in imports(path):
            library = module.split(".")[0] if not level else ""
            allowed = path in KNOW_DEEPSPEED if library == "deepspeed" else room in rooms_of.get(library, {room})
            if not allowed:
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


def is_main_guard(node):
    """Return whether a statement is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def calls(node):
    """Return the names of the functions and methods that a part of a syntax tree calls."""
    functions = [found.func for found in ast.walk(node) if isinstance(found, ast.Call)]
    return {function.attr if isinstance(function, ast.Attribute) else ast.unparse(function) for function in functions}


def test_commands_prepare_before_they_import_torch():
    """Or libgomp and the libraries have looked already: `run` prepares, but what is imported above it comes earlier."""
    checked, light = [], {"qwen_vl.startup", "qwen_vl.terminal", "qwen_vl.cli.run", "progress"}
    for path in SOURCES:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if not any(is_main_guard(node) and calls(node) & {"run", "entry"} for node in body):
            continue
        checked.append(path.stem)
        for node in body:
            if is_main_guard(node) and "prepare" in calls(node):
                break
            modules = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", ())]
            )
            for module in modules:
                heavy = module.split(".")[0] in {"torch", "transformers", "peft", "accelerate"}
                heavy |= module.startswith("qwen_vl") and module not in light
                assert not heavy, f"{name_of(path)}:{node.lineno} imports {module} before prepare()"
    assert len(checked) >= 12 and {"finetune", "__main__", "evaluate", "merge_and_unload"} <= set(checked)


def test_importing_the_package_changes_no_other_library():
    """Log levels, filters and the environment are set by commands, in functions that they call."""
    setters = {
        "setLevel",
        "addFilter",
        "filterwarnings",
        "simplefilter",
        "basicConfig",
        "captureWarnings",
        "setdefault",
    }
    setters |= {"putenv", "prepare", "quiet_libraries", "set_verbosity_error", "disable_progress_bar"}
    wrong = []
    for path in [*PACKAGE.rglob("*.py"), ROOT / "finetune.py"]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if is_main_guard(node) or isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            sets = calls(node) & setters or ast.unparse(node).startswith("os.environ")
            wrong += [f"{name_of(path)}:{node.lineno}"] * bool(sets)
    assert not wrong, wrong


@pytest.fixture(scope="module")
def names_of_the_network():
    """Return every name that modules and parameters of the model have, a part of a path each, and their classes."""
    config = QWenConfig(num_hidden_layers=1, visual=QWenConfig().visual | {"layers": 1})
    with torch.device("meta"):
        model = QWenLMHeadModel(config)
    paths = [path for path, _ in [*model.named_modules(), *model.named_parameters()]]
    classes = {type(m).__name__ for m in model.modules() if type(m).__module__.startswith("qwen_vl.")}
    names = {name for path in paths for name in path.split(".") if name and not name.isdigit()}
    return (names | classes) - OTHER_MEANINGS - {"QWenLMHeadModel"}


def spelled(text, names):
    """Yield (line number, name) of every attribute, imported name and word of a string that is one of `names`.

    Docstrings and help texts may say what they like.
    """
    tree = ast.parse(text)
    said = documented(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            helps = [keyword.value for keyword in node.keywords if keyword.arg == "help"]
            helps += node.args[1:2] if ast.unparse(node.func) == "option" else []
            said |= {part for text in helps for part in ast.walk(text)}
    for node in ast.walk(tree):
        found = set()
        if isinstance(node, ast.Attribute):
            found = {node.attr}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qwen_vl.model"):
            found = {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in said:
            found = set(re.findall(r"\w+", node.value))
        yield from ((node.lineno, name) for name in sorted(found & names))


def test_the_network_is_spelled_in_model_and_families_alone(names_of_the_network):
    wrong = []
    for path in SOURCES:
        if any(path.is_relative_to(room) for room in KNOW_THE_NETWORK):
            continue
        # Scripts write configs of models to measure, which have that key.
        names = names_of_the_network - ({"visual"} if path in SCRIPTS else set())
        found = spelled(path.read_text(encoding="utf-8"), names)
        wrong += [f"{name_of(path)}:{line} spells {name}; ask qwen_vl/families/v1.py" for line, name in found]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("model.transformer.h[0]", ["transformer"]),
        ('name.startswith("transformer.h.")', ["transformer"]),
        ('f"{block}.attn.c_attn.{leaf}"', ["attn", "c_attn"]),
        ("size = config.visual['image_size']", ["visual"]),
        ("from qwen_vl.model.decoder_qwen import QWenBlock", ["QWenBlock"]),
        ("from qwen_vl.model import visual as tower", ["visual"]),
        ('option(["w1"], "Targets, such as w1.")', ["w1"]),
        ('def f():\n    """The rows of wte."""', []),
        ('add("--base", help="trains wte and " f"lm_head")', []),
        ('parser.add_argument("--query", default="drop")', []),
    ],
)
def test_a_name_of_the_network_is_found_where_it_is_spelled(text, expected, names_of_the_network):
    assert sorted(name for _, name in spelled(text, names_of_the_network)) == expected


def test_the_launchers_folder_is_no_package():
    assert not (ROOT / "finetune" / "__init__.py").exists(), "finetune/__init__.py would shadow finetune.py"


def lengths(tree, prefix=""):
    """Yield (name, lines) of every function of a syntax tree; methods and inner functions with what holds them."""
    for node in ast.iter_child_nodes(tree):
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        inner = f"{prefix}{node.name}." if is_function or isinstance(node, ast.ClassDef) else prefix
        if is_function:
            yield inner[:-1], node.end_lineno - node.lineno + 1
        yield from lengths(node, inner)


def test_files_and_functions_stay_readable():
    """The limits are those that CONTRIBUTING.md states."""
    style = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    ((function_limit, file_limit),) = re.findall(r"at most (\d+) lines; a file at most (\d+)", style)
    long, found = [], {}
    for path in [*SOURCES, *TESTS]:
        text = path.read_text(encoding="utf-8")
        sizes = [(name_of(path), len(text.splitlines()), int(file_limit))]
        sizes += [(f"{name_of(path)} {name}", size, int(function_limit)) for name, size in lengths(ast.parse(text))]
        for name, size, limit in sizes:
            found[name] = max(size, found.get(name, 0))
            if size > limit:
                long.append(f"{name}: {size} lines, at most {limit}")
    assert not long, "\n".join(long)
    assert len(found) > 1000
