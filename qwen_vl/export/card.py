"""The README.md of an exported model: what it was made from, how, what was measured, and under which licence."""

import json
from pathlib import Path

from qwen_vl.checkpoint import loading
from qwen_vl.terminal import markdown_table
from qwen_vl.training.monitor import run_record

HEAD = """\
---
license: other
license_name: tongyi-qianwen
library_name: transformers
pipeline_tag: image-text-to-text
base_model: {base}
tags:
- qwen-vl
---

# {title}

{summary}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{title}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{title}", trust_remote_code=True).eval()
answer, history = model.chat(tokenizer, "Picture 1: <img>picture.jpg</img>\\nWhat is in the picture?", history=None)
```
"""
LICENCE = """\
## Licence

The weights stand under the Tongyi Qianwen LICENSE AGREEMENT of Alibaba Cloud where they derive from published Qwen-VL
weights, and so does `qwen.tiktoken`; read that agreement, which comes with the published weights, before you use this
model or pass it on. The Python files in this folder stand under the Apache License, Version 2.0.
"""


def read(folder):
    """What the run.json of a model or adapter says, or an empty record for a folder without one."""
    if not Path(folder).is_dir():  # a hub name
        return {}
    return loading.read_json(folder, run_record.FILE) or loading.read_json(Path(folder).parent, run_record.FILE) or {}


def extended(found, step, **facts):
    """A record with one more step of making: a sentence, and {name: value} that goes with it."""
    return found | {"export": [*found.get("export", []), {"step": step, **facts}]}


def write(folder, found, *, title, base):
    """Write README.md and run.json into the folder of a model.

    found: its record. base: {"name"} of the weights that it derives from; a local folder is shown by its last name.
    """
    found = {"base": base} | found
    path = Path(folder, run_record.FILE)
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    Path(folder, "README.md").write_text(text(found, title), encoding="utf-8")


def add(folder, title, content):
    """Put a section before the licence of a card that was written."""
    path = Path(folder, "README.md")
    path.write_text(path.read_text(encoding="utf-8").replace(LICENCE, f"## {title}\n\n{content}\n\n{LICENCE}"), "utf-8")


def text(found, title):
    """The page of a record."""
    base = short(found["base"].get("name", "unknown"))
    parts = [HEAD.format(title=title, base=base, summary=f"A Qwen-VL model, made from `{base}`.")]
    steps = found.get("export", [])
    lines = [f"{number}. {one['step']}" for number, one in enumerate(steps, start=1)]
    parts.append("## How it was made\n\n" + "\n".join([trained(found, base), "", *lines]).strip() + "\n")
    facts = [(key, value) for one in steps for key, value in one.items() if key != "step"]
    for title, rows in (
        ("Base", found["base"]),
        ("Training data (sha256)", {one["name"]: one["sha256"] for one in found.get("data", [])}),
        ("Evaluation data (sha256)", {one["name"]: one["sha256"] for one in found.get("evaluation data", [])}),
        ("Settings of training that are not the default", found.get("settings", {}) | run_record.earlier(found)),
        ("Results of training", found.get("metrics", {})),
        ("Measured at export", dict(facts)),
        ("Versions", found.get("versions", {})),
    ):
        if rows:
            parts.append(f"## {title}\n\n" + table(rows))
    return "\n".join([*parts, LICENCE])


def trained(found, base):
    """The sentence on training, or that nothing is known of it."""
    if "settings" not in found:
        return f"No record of a training came with the weights of `{base}`."
    return f"Trained from `{base}` until {found.get('finished', 'an unknown day')}, as the tables below say."


def table(rows):
    """{name: value} as Markdown."""
    return markdown_table(("", ""), [(name, shown(name, value)) for name, value in rows.items()]) + "\n"


def shown(name, value):
    """A value as one cell shows it; paths of the machine that trained by their last part."""
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(name, one) for one in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return short(str(value))


def short(name):
    """The last part of a local path; a hub name and anything else as it is."""
    return Path(name).name if Path(name).is_absolute() else name
