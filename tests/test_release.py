"""What is published: a wheel and a source distribution that hold everything, and work where they are installed."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv", "output", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VERSION = re.search(r'^version = "([\d.]+)"$', PROJECT, re.MULTILINE)[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both distributions from a copy of the project; return their folder."""
    source, target = tmp_path_factory.mktemp("release") / "source", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source), cwd=target)
    return target


def run(*command, cwd):
    """Run a command away from the repository; return what it printed. Fail with its output if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_of(folder, pattern="*"):
    """Return the files below a folder of the project, relative to the project, but for compiled ones."""
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        head = archive.read(metadata).decode()
    assert wheel.name == f"qwen_vl-{VERSION}-py3-none-any.whl"
    assert names == files_of("qwen_vl") | {"finetune.py"}
    assert f"\nVersion: {VERSION}\n" in head and "Requires-Python: >=3.11" in head


def test_the_source_distribution_is_the_whole_project(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("qwen_vl", "finetune", "scripts", "configs", "data", "docs", "tests")
    wanted = set().union(*(files_of(folder) for folder in folders), {".ci/run", "Dockerfile", "constraints.txt"})
    assert len(wanted) > 600
    assert wanted - names == set()


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Install the wheel into an environment of its own, which borrows the libraries that this one has."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"), cwd=folder)
    python = str(folder / "venv/bin/python")
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", str(wheel), cwd=folder)
    (packages,) = (folder / "venv/lib").glob("python3*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))  # the .pth files of that folder are not read
    return folder


def test_an_installed_wheel_works_away_from_the_source(installed):
    command = str(installed / "venv/bin/qwen-vl")
    assert run(command, "--version", cwd=installed) == f"qwen-vl {VERSION}\n"
    where = run(str(installed / "venv/bin/python"), "-c", "import finetune; print(finetune.__file__)", cwd=installed)
    assert where.startswith(str(installed))
    assert "GB" in run(command, "plan", "--gpu_memory", "24", cwd=installed)
    shutil.copytree(ROOT / "data/examples", installed / "examples")
    assert "conversations.json" in run(command, "data", "check", "examples/conversations.json", cwd=installed)


def test_the_newest_version_of_the_changelog_is_that_of_the_package():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[\d.]*)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert versions[0] == VERSION
    assert versions == sorted(versions, key=lambda version: [int(part) for part in version.split(".")], reverse=True)


def test_the_workflow_runs_the_tests_on_every_python_that_is_promised():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    promised = re.findall(r"Python :: (3\.\d+)", PROJECT)
    assert job["strategy"]["matrix"]["python"] == promised == ["3.11", "3.12", "3.13"]
    assert job["steps"][-1] == {"run": ".ci/run"} and os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_the_forms_for_issues_are_whole(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert form["contact_links"]
        return
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in form["body"])
