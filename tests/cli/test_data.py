"""`qwen-vl data`: its verbs and their exit codes."""

import json

from helpers.commands import exit_code


def test_data_verbs(capsys, tmp_path):
    """Exit with code 0 if all is well, 1 if there are errors, 2 if the verb is unknown."""
    records = [{"id": 1, "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records))
    assert exit_code(["data", "check", data]) == 0
    records[0]["conversations"].pop()
    data.write_text(json.dumps(records))
    assert exit_code(["data", "check", data]) == 1
    assert capsys.readouterr().err.startswith("error: 1 error in 1 of 1 records")
    assert exit_code(["data"]) == exit_code(["data", "fly"]) == exit_code(["data", "check"]) == 2
