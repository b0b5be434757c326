"""Pages in two languages have the same structure and commands; the README is short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))
PAIRS = [("README.md", "README_zh.md")]
PAIRS += [(f"docs/{path.name.replace('.zh', '')}", f"docs/{path.name}") for path in sorted(ROOT.glob("docs/*.zh.md"))]


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
    """Return the commands of all blocks of shell."""
    shown = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [without_words(re.sub(r"  +# .*", "", line)) for block in shown for line in block.splitlines()]


@pytest.mark.parametrize("names", PAIRS, ids=lambda names: names[1])
def test_pages_in_two_languages_have_the_same_structure_and_commands(names):
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in names)
    assert structure(english) == structure(chinese)
    assert commands(english) == commands(chinese)
    assert re.search(r"[\u4e00-\u9fff]", chinese)


def test_the_map_of_files_is_the_same_in_both_languages():
    """It is not translated: a test compares it with the folders."""
    maps = [
        re.findall(r"^```\n(.*?)^```$", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for name in ("how_it_works.md", "how_it_works.zh.md")
    ]
    assert len(maps[0]) == 1 and maps[0] == maps[1]


@pytest.mark.parametrize("names", PAIRS, ids=lambda names: names[1])
@pytest.mark.parametrize(
    "pattern", [r"https?://[\w./#-]+", r"`[\w./-]+`", r"\d[\d.]* GB|\d+%"], ids=["links", "code", "numbers"]
)
def test_pages_in_two_languages_name_the_same(names, pattern):
    found = [sorted(set(re.findall(pattern, (ROOT / name).read_text(encoding="utf-8")))) for name in names]
    assert found[0] == found[1]


def test_both_readmes_link_to_the_same_documents():
    """The Chinese page links to the Chinese document where there is one."""
    english, chinese = (re.findall(r"\]\(([^):#]+)\)", text) for text in (ENGLISH, CHINESE))
    assert {name.replace(".zh.md", ".md") for name in chinese} ^ set(english) == {"README.md", "README_zh.md"}
    assert all((ROOT / name).exists() for name in [*english, *chinese])


def test_chinese_pages_link_to_chinese_pages():
    """Where there is one: on the site both names work, elsewhere the name decides."""
    english, checked = [], 0
    for path in sorted(ROOT.glob("docs/*.zh.md")):
        for name in re.findall(r"\]\((\w+(?:\.zh)?)\.md[)#]", path.read_text(encoding="utf-8")):
            checked += 1
            has_both = not name.endswith(".zh") and (ROOT / f"docs/{name}.zh.md").exists()
            english += [f"{path.name}: {name}.md"] * has_both
    assert not english, "\n".join(english)
    assert checked >= 30


def test_the_readmes_are_short_and_have_commands():
    assert all(len(text.splitlines()) <= 150 for text in (ENGLISH, CHINESE))
    assert len(commands(ENGLISH)) >= 7 and len(structure(ENGLISH)) > 40
