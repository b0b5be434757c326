"""README.md and README_zh.md are the same page in two languages, and short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))


def structure(text):
    """Return what both pages must have alike: the kind of each heading, table row, list item, block and image."""
    found = []
    for line in text.splitlines():
        if line.startswith("#"):
            found.append(line.split()[0])
        elif line.startswith("|"):
            found.append(f"| {line.count('|')}")
        elif line.startswith(("```", "- ")):
            found.append(line[:5].strip() if line.startswith("```") else "-")
        elif line.startswith("!["):
            found.append(line.partition("](")[2])
    return found


def without_words(line):
    """Return a command without its comment and the texts that are translated."""
    return re.sub(r'(--query) "[^"]*"', r"\1", line.partition("    #")[0]).strip()


def commands(text):
    return [without_words(line) for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
            for line in block.splitlines()]  # fmt: skip


def test_both_pages_have_the_same_structure():
    assert structure(ENGLISH) == structure(CHINESE)
    assert len(structure(ENGLISH)) > 40


def test_both_pages_have_the_same_commands():
    assert commands(ENGLISH) == commands(CHINESE)
    assert len(commands(ENGLISH)) >= 7


@pytest.mark.parametrize(
    "pattern", [r"https?://[^\s)]+", r"`[\w./-]+`", r"\d[\d.]* GB"], ids=["links", "code", "memory"]
)
def test_both_pages_name_the_same(pattern):
    found = [sorted(set(re.findall(pattern, text))) for text in (ENGLISH, CHINESE)]
    assert found[0] == found[1] and len(found[0]) >= 4


def test_both_pages_link_to_the_same_documents():
    """The Chinese page links to the Chinese document where there is one."""
    english, chinese = (re.findall(r"\]\(([^):#]+)\)", text) for text in (ENGLISH, CHINESE))
    assert {name.replace(".zh.md", ".md") for name in chinese} ^ set(english) == {"README.md", "README_zh.md"}
    assert all((ROOT / name).exists() for name in [*english, *chinese])


def test_the_pages_are_short():
    assert all(len(text.splitlines()) <= 150 for text in (ENGLISH, CHINESE))
