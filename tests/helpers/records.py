"""Conversations for tests, and files of them."""

import json


def turns_of(*texts):
    """Return the turns of a conversation that alternates, the user first."""
    return [{"from": ("user", "assistant")[index % 2], "value": text} for index, text in enumerate(texts)]


def write_file(folder, content, name="data.json"):
    """Write a data file, from records or from raw bytes, and return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def talk(name, question, answer="An answer.", **more):
    """Return a record with one exchange, and with other keys."""
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]
    return {"id": name, "conversations": turns, **more}


# With images, a weight, ids of two types and none, and two conversations that are too long for 600 tokens.
VARIED = [
    talk("a", "<img>a.png</img><img>b.png</img>", weight=0.5),
    talk(7, "什么?", "<ref>狗</ref>"),
    talk("7", "none"),
    talk("long", "<img>a.png</img><img>b.png</img>"),
    {"id": "cut", "conversations": talk(0, "q")["conversations"] * 60},
]
del VARIED[2]["id"]
VARIED[3]["conversations"][1]["value"] = "word " * 600
