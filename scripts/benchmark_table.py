"""python scripts/benchmark_table.py

Prints the benchmarks of the registry as Markdown: parts of docs/evaluation.md, which a test compares with it.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

from qwen_vl.evaluation.benchmarks import BENCHMARKS
from qwen_vl.evaluation.benchmarks.files import CONVERTED
from qwen_vl.evaluation.benchmarks.loading import layouts_of
from qwen_vl.evaluation.prompts import TEMPLATES
from qwen_vl.evaluation.records import Decoding
from qwen_vl.terminal import markdown_table

COLUMNS = ("name", "records", "prompt", "answer", "metric", "Qwen-VL", "Qwen-VL-Chat")
ADDRESS = re.compile(r"https?://[^\s;,)]+")
NOTE = "\\*"  # marks numbers that are not from the authors' repository


def settings_table():
    """A line a benchmark: what is asked, how, the metric, the published numbers."""
    return markdown_table(COLUMNS, [row(benchmark) for benchmark in BENCHMARKS.values()])


def row(benchmark):
    """The cells of a benchmark."""
    size = "" if benchmark.size is None else f"{benchmark.size:,}"
    name = f"`{benchmark.name}`"
    if benchmark.parts:
        return [name, "", "", "", f"mean of both: {benchmark.metric.name}", *published(benchmark)]
    shots = f", {benchmark.num_shots} shots" if benchmark.num_shots else ""
    metric = benchmark.metric.name if benchmark.has_answers else f"{benchmark.metric.name} (submission file)"
    return [name, size, f"{benchmark.style} `{benchmark.template}`{shots}", answer(benchmark.decoding), metric,
            *published(benchmark)]  # fmt: skip


def answer(decoding):
    """How a benchmark is answered, in words."""
    if isinstance(decoding, Decoding):
        end = ", ends at `<|im_end|>`" if decoding.end == "im_end" else ""
        return f"{decoding.min_new_tokens} to {decoding.max_new_tokens} tokens{end}"
    return f"ranks {'its' if decoding.num_options is None else decoding.num_options} options"


def published(benchmark):
    """The published numbers of both models as text, those with solved examples in brackets."""
    cells = []
    for model in COLUMNS[-2:]:
        value = benchmark.published.get(model)
        shots = [
            f" ({count}-shot {numbers[model]:g})"
            for count, numbers in benchmark.published_with_shots.items()
            if model in numbers
        ]
        mark = f" {NOTE}" if benchmark.published_note and (model in benchmark.published_note or ":" not in
                                                            benchmark.published_note) else ""  # fmt: skip
        cells.append("" if value is None else f"{value:g}{''.join(shots)}{mark}")
    return cells


def prompts_block():
    """The templates, one a line, newlines as \\n."""
    lines = [f"{name:12} {text!r}"[:-1].replace(" '", " ", 1) for name, text in TEMPLATES.items()]
    return "\n".join(["```", *lines, "```"])


def files_list():
    """An item a benchmark: its files, where each can be had, and the other forms in which they may lie there."""
    return "\n".join(f"- {item(benchmark)}" for benchmark in BENCHMARKS.values())


def item(benchmark):
    """The files of a benchmark in words."""
    if benchmark.parts:
        return f"`{benchmark.name}`: those of {' and '.join(f'`{part}`' for part in benchmark.parts)}."
    first, *others = layouts_of(benchmark)
    text = f"`{benchmark.name}` ({benchmark.title}): {'; '.join(map(described, first.files.values()))}."
    for layout in others:
        paths = dict.fromkeys(path(file) for file in layout.files.values() if not file.optional)
        text += f" Or, {layout.name}: {' and '.join(paths)}."
    return text


def described(file):
    """A file and its source, with links."""
    source = ADDRESS.sub(lambda match: link(match[0]), file.source)
    return f"{'optional ' if file.optional else ''}{path(file)} ({source})"


def path(file):
    """The path below data/."""
    return f"`{file.path.removeprefix('data/')}`"


def link(address):
    """A link under the name of its host; files that the authors converted all lie at one."""
    name = "converted" if address.startswith(CONVERTED) else address.split("/")[2]
    return f"[{name}]({address})"


if __name__ == "__main__":
    print("\n\n".join((settings_table(), prompts_block(), files_list())))
