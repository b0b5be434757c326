"""Carry out a Dockerfile without Docker, in chroots of a fresh Debian: every RUN, COPY, ENV, WORKDIR and USER.

    sudo python scripts/check_dockerfile.py --work /var/tmp/check "qwen-vl --version" "qwen-vl plan --gpu_memory 24"

The commands are run at last, as the image's user in its last folder. It needs root, debootstrap, 5 GB below --work, and
the network. What it does not show: that the base image itself has what Debian has, and anything of a GPU. Bases must be
`python:3.X-slim-RELEASE`, where 3.X is the Python of that Debian release.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parents[1]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
IGNORED = {"ENTRYPOINT", "CMD", "EXPOSE", "LABEL"}


def instructions(text):
    """Return [(word, rest)] of a Dockerfile: comments dropped, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1].strip()) for line in lines if line.strip()]


@dataclass
class Stage:
    """A file system on its way, and what later commands in it are told."""

    folder: Path
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": SYSTEM_PATH, "HOME": "/root"})
    workdir: str = "/"
    user: str = "root"

    def inside(self, path):
        """Return the host's path of a path in the stage; relative ones start at the work folder."""
        return self.folder / os.path.normpath(os.path.join(self.workdir, path)).lstrip("/")

    def run(self, command):
        """Run a line of shell as the image's user in its work folder."""
        print(f"RUN as {self.user} in {self.workdir}: {command}", flush=True)
        line = f"cd {shlex.quote(self.workdir)} && {command}"
        chroot = ["chroot", f"--userspec={self.user}", str(self.folder), "/bin/sh", "-c", line]
        subprocess.run(chroot, env=self.variables, check=True)


def make_base(image, folder, certificates=None, wheels=None):
    """Fill a folder with Debian and its Python, as the image of Docker's library has it."""
    version, release = re.fullmatch(r"python:(3\.\d+)-slim-(\w+)", image).groups()
    packages = f"--include=ca-certificates,python{version},python{version}-venv,python3-pip"
    subprocess.run(["debootstrap", "--variant=minbase", packages, release, str(folder)], check=True)
    (folder / "usr/local/bin/python").symlink_to(f"/usr/bin/python{version}")
    shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
    if certificates:  # of a proxy that this machine is behind
        shutil.copy(certificates, folder / "etc/ssl/certs/ca-certificates.crt")
    if wheels:
        shutil.copytree(wheels, folder / "wheels")
    for device in ("null", "urandom"):
        if not (folder / "dev" / device).exists():
            subprocess.run(["cp", "-a", f"/dev/{device}", str(folder / "dev")], check=True)
    return Stage(folder)


def copy(stage, rest, stages, source):
    """Carry out a COPY, from the context (without what .dockerignore names) or from another stage."""
    match = re.match(r"--from=(\w+)\s+", rest)
    *sources, target = shlex.split(rest[match.end() :] if match else rest)
    base = stages[match[1]].folder if match else source
    for name in sources:
        found, place = base / name.lstrip("/"), stage.inside(target)
        print(f"COPY {found} {place}", flush=True)
        if found.is_dir():
            shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True)
        else:
            place = place / found.name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, place)


def context(work):
    """Return a copy of the project without what .dockerignore names."""
    names = [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().split()]
    return shutil.copytree(ROOT, work / "context", ignore=shutil.ignore_patterns(*names), symlinks=True)


def build(text, work, *, arguments, certificates=None, wheels=None):
    """Carry out a Dockerfile; return its last stage."""
    stages, stage, source = {}, None, context(work)
    inside = "/etc/ssl/certs/ca-certificates.crt"
    settings = {"SSL_CERT_FILE": inside, "PIP_CERT": inside} if certificates else {}
    settings |= {"PIP_FIND_LINKS": "/wheels"} if wheels else {}
    for number, (word, rest) in enumerate(instructions(text)):
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            stage = make_base(image, work / f"stage{number}", certificates, wheels)
            stage.variables |= settings
            stages[name or str(number)] = stage
        elif word == "ARG":
            name, _, default = rest.partition("=")
            stage.variables[name] = arguments.get(name, default)
        elif word == "ENV":
            pairs = [pair.split("=", 1) for pair in shlex.split(rest)]
            stage.variables |= {name: Template(value).substitute(stage.variables) for name, value in pairs}
        elif word == "WORKDIR":
            stage.workdir = os.path.join(stage.workdir, rest)
            stage.inside("").mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            stage.user = rest
        elif word == "COPY":
            copy(stage, rest, stages, source)
        elif word == "RUN":
            stage.run(rest)
        elif word not in IGNORED:
            raise SystemExit(f"check_dockerfile.py cannot carry out {word}")
    return stage


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commands", nargs="*", help="lines of shell to run in the last stage")
    parser.add_argument("--work", type=Path, required=True, help="a new folder for the file systems")
    parser.add_argument("--build_args", type=json.loads, default={}, help='such as {"EXTRAS": "serve"}')
    parser.add_argument("--certificates", help="file of the certificates of a proxy")
    parser.add_argument("--wheels", help="folder of wheels that pip may take as well, such as a torch for the CPU")
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    where = {"certificates": args.certificates, "wheels": args.wheels}
    stage = build(text, args.work, arguments=args.build_args, **where)
    for command in args.commands:
        stage.run(command)
    print("every instruction and command ended with 0")


if __name__ == "__main__":
    main()
