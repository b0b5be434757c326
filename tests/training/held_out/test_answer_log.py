"""eval_answers.jsonl, and the table that the report makes of it."""

import json

from qwen_vl.training.held_out import answer_log, answer_table


def entry(step, name, score=0.0, answer="red", **more):
    texts = {"question": f"Q{name}?", "answers": ["blue", "navy"], "answer": answer, "score": score}
    return {"step": step, "id": name, **texts, **more}


def test_lines_are_whole_and_steps_are_written_once(tmp_path):
    path = tmp_path / answer_log.FILE
    assert answer_log.read(path) == []
    answer_log.keep(path, lambda step: False)
    assert not path.exists()
    answer_log.append(path, [entry(1, "a", answer="红"), entry(1, "b")])
    answer_log.append(path, [entry(2, "a"), entry(2, "b")])
    whole = path.read_bytes()
    for torn in (b'{"step": 3, "id', json.dumps(entry(3, "a")).encode()):  # the second lacks its newline alone
        path.write_bytes(whole + torn)
        assert [one["step"] for one in answer_log.read(path)] == [1, 1, 2, 2]
    answer_log.keep(path, lambda step: step < 3)
    assert path.read_bytes() == whole
    answer_log.keep(path, lambda step: step < 2)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])


def test_the_table_shows_what_changed_most_over_the_steps():
    entries = [entry(step, str(n), score=n / 20 * step / 70) for step in range(0, 80, 10) for n in range(20)]
    entries[-1] |= {"answer": "x" * 500}
    entries[-2] |= {"answer": None, "score": None, "error": "image gone"}
    head, rows = answer_table.columns(entries)
    assert head == ["question", "right", "step 0", "step 20", "step 40", "step 50", "step 70"]
    assert [row[0] for row in rows] == ["Q19?", *(f"Q{n}?" for n in range(17, 8, -1))] and rows[0][1] == "blue | navy"
    assert rows[0][2] == "red (0.00)" and rows[0][-1] == f"{'x' * 120}.. (0.95)"
    rows = answer_table.columns(entries[-3:])[1]
    assert [row[-1] for row in rows[:2]] == ["red (0.85)", "none: image gone"]
    assert answer_table.columns([]) == ([], [])
