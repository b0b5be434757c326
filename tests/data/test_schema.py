"""data/conversation.schema.json says what the validator says, as far as a schema can."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from qwen_vl.data.validation import ERRORS, KEYS, WARNINGS, check_record

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "data" / "conversation.schema.json").read_text(encoding="utf-8"))
FILE = Draft202012Validator(SCHEMA)
# What the schema's own comment says it cannot say.
UNSAID = {"wrong order", "swapped corners", "missing image", "broken image", "broken text", "broken JSON"}

Q, A = {"from": "user", "value": "What is it?"}, {"from": "assistant", "value": "A red box."}
TEXTS = [
    "plain <html> a<b </p> 狗\n",
    "",
    " \n",
    "<img>a b/ü.png</img> <ref>a < b</ref><box>(0,0),(999,007)</box>\n",
    "<quad>(1,2),(3,4),(5,6),(7,8)</quad>",
    "<img>HTTPS://host/a,b.png</img><img>data:image/png;base64,iVBO</img>",
    "<img>C:\\a.png</img>",
    "<img>ftp://host/a</img>",
    "<img>http:///a</img>",
    "<img>data:image/png,iVBO</img>",
    "<img> </img>",
    "<img>a.png",
    "a.png</img>",
    "<ref><box>(1,2),(3,4)</box></ref>",
    "<ref>a</box>",
    "<imgpad>",
    "<box>(1, 2),(3,4)</box>",
    "<box>(1,2),(3,1000)</box>",
    "<box>(-1,2),(3,4)</box>",
    "<box>(1,2),(3,4),(5,6),(7,8)</box>",
    "<box>(9,2),(3,4)</box>",
    "<quad>(1,2),(3,4)</quad>",
    "half \ud83d",
]
WRONG_VALUES = [None, True, 0, 1.5, -1, [], {}, "text", [{"type": "text"}]]


def verdicts(record):
    """Return (the kinds of errors of the validator, whether the schema accepts the record)."""
    kinds = {problem.kind for problem in check_record("[0]", record) if problem.is_error}
    return kinds, FILE.is_valid([record])


def agree(record):
    kinds, is_valid = verdicts(record)
    if is_valid:  # all that it cannot say
        assert kinds <= UNSAID, (record, kinds)
    else:
        assert kinds - UNSAID, record


def test_the_schema_is_one_and_describes_every_field():
    Draft202012Validator.check_schema(SCHEMA)
    for name, (required, optional, _) in KEYS.items():
        part = SCHEMA["$defs"][name]
        assert set(part["required"]) == required and set(part["properties"]) == required | optional
        described = [field.get("description") or field["$ref"] for field in part["properties"].values()]
        assert all(described)
    assert UNSAID < ERRORS and not UNSAID & WARNINGS


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text):
    """Check each text in a question, in an answer, and as system message; alone and twice."""
    for value in (text, f"see {text} and {text}"):
        agree({"conversations": [{**Q, "value": value}, A]})
        agree({"conversations": [Q, {**A, "value": value}]})
        agree({"system": value, "conversations": [Q, A]})


def test_the_texts_tell_good_from_bad():
    verdict = [FILE.is_valid([{"conversations": [{**Q, "value": text}, A]}]) for text in TEXTS]
    assert verdict[:7] == [True] * 7 and [text for text, good in zip(TEXTS, verdict, strict=True) if good][7:] == [
        "<box>(9,2),(3,4)</box>",
        "half \ud83d",
    ]


def test_values_of_another_type():
    for value in WRONG_VALUES:
        agree(value)
        agree([value])
        agree({"conversations": value})
        agree({"conversations": [Q, value]})
        for key in ("id", "system", "weight", "topic"):
            agree({key: value, "conversations": [Q, A]})
        for key in ("from", "value", "loss", "topic"):
            agree({"conversations": [Q, {**A, key: value}, Q, A]})
    for key in ("from", "value"):
        agree({"conversations": [Q, {name: value for name, value in A.items() if name != key}]})
    for role in ("human", "gpt", "system", "User"):
        agree({"conversations": [{**Q, "from": role}, A]})


def test_orders_of_turns():
    """Check every list of up to four turns, learned or not. A schema cannot see that a learned answer only opens."""
    unlearned = {**A, "loss": False}
    for num in range(5):
        for turns in itertools.product([Q, A, unlearned], repeat=num):
            kinds, is_valid = verdicts({"conversations": list(turns)})
            if is_valid and "nothing to learn" in kinds:
                assert turns[0]["from"] == "assistant"
            else:
                agree({"conversations": list(turns)})


def test_images_under_a_key_of_their_own():
    for key, text in itertools.product(("image", "images", "video"), ("<image>\nq", "<img>a.png</img>")):
        agree({key: "a.png", "conversations": [{**Q, "value": text}, A]})
    assert not FILE.is_valid([{"image": "a.png", "conversations": [Q, A]}])


def test_pieces_of_tags_in_any_order():
    """Join pieces of good texts at random. The schema never rejects what the validator accepts."""
    pieces = re.findall(r"</?\w+>|[^<>]+|[<>]", "".join(TEXTS[:7])) + ["(", "1,2", "<imgpad>", "data:", "://", "http"]
    chance = random.Random(0)
    verdict = []
    for _ in range(1500):
        text = "".join(chance.choices(pieces, k=chance.randint(1, 7)))
        record = {"conversations": [{**Q, "value": text}, A]}
        agree(record)
        verdict.append(FILE.is_valid([record]))
    assert 200 < sum(verdict) < 1300


def test_the_shown_and_shipped_records_are_valid():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    files = [block.split("```")[0] for block in page.split("```json\n")[1:]]
    files += [path.read_text(encoding="utf-8") for path in (ROOT / "data" / "examples").glob("*.json")]
    assert len(files) >= 3
    for text in files:
        assert not [error.message for error in FILE.iter_errors(json.loads(text))]
    assert not FILE.is_valid([]) and not FILE.is_valid({"id": 1, "conversations": [Q, A]})
