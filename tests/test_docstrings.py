"""Docstrings of the package: what they name as `module.name` or `Class.name` is defined there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = re.compile(r"`((?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*)(?:\([^`]*\))?`")
FILE = re.compile(r"\.(?:py|jsonl?|png)$")
OBJECTS = {"app.state.running", "model.chat"}  # a FastAPI application and a model, which are named like modules
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def bound(body):
    """Return the names that statements define or assign; an import in them binds no name of their own."""
    found = {node.name for node in body if isinstance(node, DEFINITIONS)}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {part.id for target in targets if target for part in ast.walk(target) if isinstance(part, ast.Name)}
    return found


def attributes(node, classes):
    """Return the names of a class: of its body, of what its methods assign to self, and of its bases in `classes`."""
    stored = (part for part in ast.walk(node) if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store))
    found = bound(node.body) | {part.attr for part in stored if getattr(part.value, "id", None) == "self"}
    bases = (classes[base.id] for base in node.bases if getattr(base, "id", None) in classes)
    return found.union(*(attributes(base, classes) for base in bases))


@pytest.fixture(scope="module")
def trees():
    paths = sorted((ROOT / "qwen_vl").rglob("*.py"))
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@pytest.fixture(scope="module")
def owners(trees):
    """Return {dotted name of a module or class: the names in it}; a package has those of its __init__ and modules."""
    found = {}
    classes = {node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)}
    for path, tree in trees.items():
        names = found.setdefault(module_of(path), set())
        names |= bound(tree.body)
        if path.name == "__init__.py":
            names |= {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        own = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        found |= {f"{module_of(path)}.{node.name}": attributes(node, classes) for node in own}
    for name in list(found):
        found.setdefault(name.rpartition(".")[0], set()).add(name.rpartition(".")[2])
    return found


def is_wrong(reference, owners):
    """Return whether a dotted name begins with a module or class of the package and goes on with what it lacks."""
    if FILE.search(reference) or reference in OBJECTS:
        return False
    owner, _, name = reference.rpartition(".")
    named = [names for place, names in owners.items() if f".{place}".endswith(f".{owner}")]
    return bool(named) and not any(name in names for names in named)


def test_what_docstrings_name_is_defined_there(trees, owners):
    wrong, checked = [], 0
    for path, tree in trees.items():
        for node in (node for node in ast.walk(tree) if isinstance(node, (ast.Module, *DEFINITIONS))):
            references = REFERENCE.findall(ast.get_docstring(node) or "")
            checked += len(references)
            place = f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'the module')}"
            wrong += [f"{place} names {reference}" for reference in references if is_wrong(reference, owners)]
    assert checked > 50 and not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`readers.data_files`", ["readers.data_files"]),  # which readers.py only imports
        ("`readers.open_files`, `sources.locating`, `data.sources.readers.open_whole(path)`", []),
        ("`Adapter.open`, `Adapter.folder`, `VisionCache.digest`, `QWenModel.embed`", []),
        (
            "`Adapter.close`, `adapter.Adapter.close`, `families.v2`",
            ["Adapter.close", "adapter.Adapter.close", "families.v2"],
        ),
        ("`locating.data_files` and `modelscope.snapshot_download`, `answers.jsonl`, `model.chat(..)`", []),
    ],
)
def test_a_wrong_name_is_found(text, expected, owners):
    assert [reference for reference in REFERENCE.findall(text) if is_wrong(reference, owners)] == expected
