"""The Dockerfile and compose.yaml, as far as they can be checked without Docker. `check_dockerfile.py` runs it."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from helpers.runs import script

from qwen_vl.cli import main as cli_main

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def checker():
    return script("check_dockerfile")


def test_the_dockerfile_follows_the_rules_of_hadolint():
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, ROOT / "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_image_runs_as_an_ordinary_user_and_holds_no_compiler_cache(checker):
    words = checker.instructions(DOCKERFILE)
    assert [rest for word, rest in words if word == "USER"] == ["1000"]
    stages = [rest for word, rest in words if word == "FROM"]
    assert len(stages) == 2 and stages[0].endswith(" AS build") and " AS " not in stages[1]
    copied = {rest.split()[1] for word, rest in words if word == "COPY" and rest.startswith("--from=build ")}
    assert copied == {"/opt/venv", "/opt/qwen-vl"}
    extras = next(rest.partition("=")[2] for word, rest in words if word == "ARG" and rest.startswith("EXTRAS"))
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(extras.split(",")) <= set(known)


def test_a_dockerfile_is_carried_out_in_its_order(checker, monkeypatch, tmp_path):
    """With folders instead of a Debian: what is copied where, and what each RUN is told."""
    ran = []

    def make_base(image, folder, *_):
        folder.mkdir(parents=True)
        return checker.Stage(folder)

    def run(stage, command):
        ran.append((command, stage.workdir, stage.user, stage.variables.get("NAME")))

    monkeypatch.setattr(checker, "make_base", make_base)
    monkeypatch.setattr(checker.Stage, "run", run)
    monkeypatch.setattr(checker, "context", lambda work: ROOT)
    text = """
FROM first AS build
ARG NAME=one
# a comment
RUN a \\
    && b
ENV NAME=two PATH=/opt/bin:$PATH
WORKDIR /opt
COPY LICENSE finetune ./
FROM second
COPY --from=build /opt/LICENSE /data/
WORKDIR data
USER 7
RUN c
ENTRYPOINT ["x"]
"""
    stage = checker.build(text, tmp_path, arguments={"NAME": "three"})
    assert ran == [("a      && b", "/", "root", "three"), ("c", "/data", "7", None)]
    assert (tmp_path / "stage0/opt/LICENSE").is_file() and (stage.folder / "data/LICENSE").is_file()
    assert (tmp_path / "stage0/opt/finetune_ds.sh").is_file()
    with pytest.raises(SystemExit, match="HEALTHCHECK"):
        checker.build("FROM x\nHEALTHCHECK y", tmp_path / "again", arguments={})


def services():
    """Return the services of compose.yaml."""
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]


@pytest.mark.parametrize("name", ["api", "page"])
def test_the_commands_of_the_services_are_ours(name):
    verb, *words = services()[name]["command"]
    parser = import_module(f"qwen_vl.cli.{verb}").make_parser()
    args = parser.parse_args([re.sub(r"\$\{\w+[^}]*\}", "/data/model", word) for word in words])
    assert args.host == "0.0.0.0" and verb in cli_main.VERBS


def test_the_services_are_closed_to_other_machines_and_to_callers_without_a_key():
    found = services()
    for service in found.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert any("QWEN_VL_API_KEY:?" in value for value in service["environment"].values())
    (ours,) = (port.rpartition(":")[2] for port in found["api"]["ports"])
    assert f"http://api:{ours}/v1" in found["page"]["command"] and f":{ours}/health" in str(found["api"]["healthcheck"])
    assert found["api"]["image"] == found["page"]["image"] and "build" not in found["page"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("debootstrap"), reason="needs debootstrap, root and the network")
def test_every_instruction_of_the_dockerfile_runs_in_a_fresh_debian(tmp_path):
    index = re.search(r"TORCH_INDEX_URL=(\S+)", DOCKERFILE).group(1)
    try:
        urlopen(index, timeout=20).close()
    except OSError as error:
        pytest.skip(f"the package index of the Dockerfile cannot be reached: {index}: {error}")
    commands = [
        "qwen-vl --version",
        "qwen-vl data check /opt/qwen-vl/data/examples/conversations.json",
        "test $(id -u) = 1000",
    ]
    words = [sys.executable, ROOT / "scripts/check_dockerfile.py", "--work", tmp_path / "check", *commands]
    assert subprocess.run(words).returncode == 0
