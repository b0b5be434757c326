"""A small table of how answers change over the evaluations of a run."""

from collections.abc import Sequence

from .answer_log import Entry

NUM_RECORDS, NUM_STEPS = 10, 5  # at most, in the table
NUM_CHARACTERS = 120  # of a text in a cell


def columns(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows: question, right answer, and the answer with its score at some of the steps.

    entries: of eval_answers.jsonl. The records whose scores changed most from the first to the last step come first.
    """
    by_step: dict[int, dict[str, Entry]] = {}
    for entry in entries:
        by_step.setdefault(entry["step"], {})[entry["id"]] = entry
    if not by_step:
        return [], []
    steps = spread(sorted(by_step), NUM_STEPS)
    first, last = by_step[steps[0]], by_step[steps[-1]]

    def change(name: str) -> float:
        return abs((last[name]["score"] or 0) - (first.get(name, last[name])["score"] or 0))

    names = sorted(last, key=change, reverse=True)[:NUM_RECORDS]  # in their order where they changed alike
    rows = []
    for name in names:
        said = [shown(by_step[step].get(name)) for step in steps]
        rows.append([shortened(last[name]["question"]), shortened(" | ".join(last[name]["answers"])), *said])
    return ["question", "right", *(f"step {step}" for step in steps)], rows


def spread(steps: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(number * (len(steps) - 1) / (most - 1))] for number in range(most)]


def shown(entry: Entry | None) -> str:
    """Return an answer with its score, or why there is none."""
    if entry is None:
        return ""
    if entry["answer"] is None:
        return f"none: {shortened(entry['error'])}"
    return f"{shortened(entry['answer'])} ({entry['score']:.2f})"


def shortened(text: str) -> str:
    """Return the beginning of a text that is too long for a cell."""
    return text if len(text) <= NUM_CHARACTERS else f"{text[:NUM_CHARACTERS]}.."
