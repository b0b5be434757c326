"""The README.md of an exported model: what it was made from, how, what was measured, and its license."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_vl.checkpoint.files import read_json
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
answer, history = model.chat(tokenizer, "Picture 1: <img>image.jpg</img>\\nWhat is in the image?", history=None)
```
"""
ADAPTER_HEAD = """\
---
license: other
license_name: tongyi-qianwen
library_name: peft
pipeline_tag: image-text-to-text
base_model: {base}
tags:
- qwen-vl
- lora
---

# {title}

{summary}

```sh
qwen-vl chat {title}
qwen-vl merge {title} MERGED
```
"""
Record = dict[str, Any]  # run.json of a training, with a list "export" of what was done since

LICENSE = """\
## License

The weights are under the Tongyi Qianwen LICENSE AGREEMENT of Alibaba Cloud where they derive from published Qwen-VL
weights, and so is `qwen.tiktoken`; read that agreement, which comes with the published weights, before you use this
model or pass it on. The Python files in this folder are under the Apache License, Version 2.0.
"""


def read(folder: str | Path) -> Record:
    """Return what the run.json of a model or adapter says, or an empty record if there is none."""
    if not Path(folder).is_dir():  # a hub name
        return {}
    return read_json(folder, run_record.FILE) or read_json(Path(folder).parent, run_record.FILE) or {}


def extended(found: Record, step: str, **facts: object) -> Record:
    """Return a record with one more step: a sentence, and {name: value} of what was measured."""
    return found | {"export": [*found.get("export", []), {"step": step, **facts}]}


def write(folder: str | Path, found: Record, *, title: str, base: Mapping[str, Any]) -> None:
    """Write README.md and run.json into the folder of a model.

    found: its record. base: {"name"} of the weights that it was made from; a local folder is shown by its last part.
    """
    found = {"base": dict(base)} | found
    path = Path(folder, run_record.FILE)
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    Path(folder, "README.md").write_text(text(found, title), encoding="utf-8")


def add(folder: str | Path, title: str, content: str) -> None:
    """Insert a section before the license in the card of a folder."""
    path = Path(folder, "README.md")
    path.write_text(path.read_text(encoding="utf-8").replace(LICENSE, f"## {title}\n\n{content}\n\n{LICENSE}"), "utf-8")


def text(found: Record, title: str) -> str:
    """Return the page of a record of a model."""
    base = short(found["base"].get("name", "unknown"))
    return _page(found, HEAD.format(title=title, base=base, summary=f"A Qwen-VL model, made from `{base}`."))


def adapter_text(found: Record, title: str) -> str:
    """Return the page of a record of an adapter."""
    base = short(found["base"].get("name", "unknown"))
    return _page(found, ADAPTER_HEAD.format(title=title, base=base, summary=f"An adapter for Qwen-VL, on `{base}`."))


def _page(found: Record, head: str) -> str:
    """Return the page of a record below its head."""
    base = short(found["base"].get("name", "unknown"))
    parts = [head]
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
    return "\n".join([*parts, LICENSE])


def trained(found: Record, base: str) -> str:
    """Return the sentence on training, or that nothing is known of it."""
    if "settings" not in found:
        return f"No record of a training came with the weights of `{base}`."
    return f"Trained from `{base}` until {found.get('finished', 'an unknown day')}, as the tables below say."


def table(rows: Mapping[str, Any]) -> str:
    """Return {name: value} as Markdown."""
    return markdown_table(("", ""), [(name, shown(name, value)) for name, value in rows.items()]) + "\n"


def shown(name: str, value: object) -> str:
    """Return the text of a cell. Paths of the machine that trained are cut to their last part."""
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(name, one) for one in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return short(str(value))


def short(name: str) -> str:
    """Return the last part of a local path; a hub name and anything else as it is."""
    return Path(name).name if Path(name).is_absolute() else name
