"""The prose of code and documents: plain American English, without the phrases that readers stumble over."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("*.py", "*.md", "*.sh", "*.yaml", "*.toml")
FOLDERS = ("qwen_vl", "finetune", "scripts", "configs", "data", "docs", "tests")
STEMS = "quanti|tokeni|normali|initiali|seriali|optimi|recogni|organi|summari|minimi|maximi|generali|speciali"
STEMS += "|synchroni|materiali|visuali|standardi|paralleli|randomi|categori|prioriti|characteri"
PHRASES = {  # what is looked for: what to write
    rf"(?:{STEMS})s(?:e[sdr]?|ing|ations?|able)(?![a-z])": "z, as in quantize",
    r"colour|behaviour|favour|neighbour|honour": "-or, as in color",
    r"\bgrey": "gray",
    r"\blicence": "license",
    r"\blabelled|\bmodelling|\bartefact": "labeled, modeling, artifact",
    r"None, or an? \w*Error": "Raise ValueError if X.",
    r"pictureless": "without images",
    r"\bnobody\b": "name who does or does not: a rank, a reader, no process",
    r"\bpass(?:es|ed) over\b": "skip",
    r"\bgo(?:es)? on where\b": "resume from",
    r"\b(?:Learned|Kept|Counted|Compared|Refused|Shown|Measured) (?:is|are) (?:the|what|all|only)\b": "subject first",
}
STILL = {  # rooms that have not been rewritten yet. Delete the line of a room when the test says so.
    "qwen_vl/training",
    "qwen_vl/training/resume",
    "scripts",
    "tests/training/monitor",
    "tests/training/resume",
}


def room_of(path):
    """Return the folder of a file, relative to the repository; its name for a file of the root."""
    relative = path.relative_to(ROOT)
    return str(relative.parent) if len(relative.parts) > 1 else relative.name


def found(text):
    """Return [(line number, what stands there, what to write)], also where a phrase goes over the end of a line."""
    places = []
    for phrase, advice in PHRASES.items():
        pattern = phrase.replace(" ", r"(?:\s|#)+")
        for match in re.finditer(pattern, text, flags=re.IGNORECASE):
            places.append((text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), advice))
    return sorted(places)


def test_no_phrase_that_readers_stumble_over():
    files = [path for kind in KINDS for path in ROOT.glob(kind)]
    files += [path for folder in FOLDERS for kind in KINDS for path in (ROOT / folder).rglob(kind)]
    files = [path for path in files if "golden" not in path.parts and path != Path(__file__).resolve()]
    assert len(files) > 200
    wrong, rooms = [], set()
    for path in [*files, ROOT / "NOTICE", ROOT / "Dockerfile"]:
        places = found(path.read_text(encoding="utf-8"))
        if places:
            rooms.add(room_of(path))
        if room_of(path) not in STILL:
            wrong += [f"{path.relative_to(ROOT)}:{line}: {what!r}: write {advice}" for line, what, advice in places]
    wrong += [f"{room} is done: delete its line in STILL" for room in sorted(STILL - rooms)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text, expected",
    [
        ('"""None, or a ValueError where it cannot be packed."""', ["None, or a ValueError"]),
        ("# What is there is passed\n    # over, so that it is quick.", ["passed # over"]),
        ("The run goes on where\nit was. Nobody waits.", ["goes on where", "Nobody"]),
        ("Learned is the loss of the targets.", ["Learned is the"]),
        ("dequantised, Tokenises, initialisation", ["quantised", "Tokenises", "initialisation"]),
        ("colours of grey behaviour, under a licence", ["colour", "grey", "behaviour", "licence"]),
        ("quantized colors of gray; a license; behavior; advised, revised, raises, optimism, passes overall", []),
    ],
)
def test_a_phrase_is_found(text, expected):
    assert sorted(what for _, what, _ in found(text)) == sorted(expected)
