"""The site of the documents: it builds without a warning, in both languages, and loads nothing from other servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there_in_both_languages(site):
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").glob("*.md")}
    english = {name.replace(".md", ".html") for name in pages if not name.endswith(".zh.md")}
    assert len(english) > 14
    for folder in (site, site / "zh"):
        assert english <= {path.name for path in folder.glob("*.html")}
    assert 'lang="zh"' in (site / "zh/index.html").read_text(encoding="utf-8")


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2].partition("\nplugins:\n")[0]
    named = re.findall(r": ([\w./]+\.md)$", menu, re.MULTILINE)
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert sorted(named) == sorted(name for name in pages if ".zh." not in name)


def test_a_browser_fetches_nothing_from_other_servers(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source|video)[^>]*\ssrc=[\"']?((?:https?:)?//[^\"' >]+)", text)
        links = re.findall(r"<link[^>]*rel=[\"']?(?:stylesheet|preconnect|preload|icon)[^>]*>", text)
        loaded += [link for link in links if re.search(r"href=[\"']?https?://", link)]
        assert loaded == [], page
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"url\([\"']?https?://", styles) and "@import" not in styles
