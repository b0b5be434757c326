"""Effects of the data flags in a run: weights, mixes, streams, labels, the length limit, and their log lines."""

import json

import pytest
from helpers import runs


def history(folder, key="loss"):
    """Return the log lines of a run that have a key."""
    entries = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry for entry in entries if key in entry]


def write(path, texts, **more):
    """Write a data file with a record for each (question, answer); `more` is added to the last one."""
    records = [
        {
            "id": index,
            "conversations": [{"from": "user", "value": question}, {"from": "assistant", "value": answer}],
        }
        for index, (question, answer) in enumerate(texts)
    ]
    records[-1] |= more
    lines = "\n".join(json.dumps(record) for record in records)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(records))
    return path


LIGHT, HEAVY = ("hi", "hello"), ("1 + 1?", "2, I should think")


def test_a_weight_of_two_trains_as_the_sample_twice(make_checkpoint, tmp_path):
    """Check the mean over the weights of all targets, also if only some micro-batches have weights."""
    weighted = write(tmp_path / "weighted.json", [LIGHT, HEAVY], weight=2)
    twice = write(tmp_path / "twice.json", [LIGHT, HEAVY, HEAVY])
    settings = {
        "max_steps": 2,
        "max_grad_norm": 0.1,
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
    }
    once = runs.train(make_checkpoint(), tmp_path / "a", data_path=weighted, gradient_accumulation_steps=2, **settings)
    both = runs.train(make_checkpoint(), tmp_path / "b", data_path=twice, gradient_accumulation_steps=3, **settings)
    assert runs.losses(once) == pytest.approx(runs.losses(both), rel=2e-6)
    assert runs.largest_difference(runs.weights(once), runs.weights(both)) < 2e-5


def test_several_files_are_mixed_and_logged_apart(make_checkpoint, tmp_path):
    first = write(tmp_path / "first.json", [LIGHT] * 3)
    second = write(tmp_path / "second.jsonl", [HEAVY] * 5)
    out = runs.train(
        *(make_checkpoint(), tmp_path / "out", "--data_path", str(first), f"{second}:0.6", "--loss_on", "answers"),
        per_device_train_batch_size=6,
        num_train_epochs=2,
        max_steps=-1,
    )
    entries = history(out)
    assert len(entries) == 2  # 3 + 0.6 * 5 samples an epoch
    for entry in entries:
        assert entry["tokens/first.json"] / 3 < entry["tokens/second.jsonl"] / 3
        low, high = sorted([entry["loss/first.json"], entry["loss/second.jsonl"]])
        assert low < entry["loss"] < high and 0 <= entry["data_wait"] <= 1
    alone = runs.train(make_checkpoint(), tmp_path / "alone", data_path=first)
    assert not [key for entry in history(alone) for key in entry if key.startswith(("tokens/", "loss/"))]


def test_a_stream_trains_and_resumes_where_it_was(make_checkpoint, tmp_path):
    data = write(tmp_path / "data.jsonl", [(f"{index}?", "word " * (index % 7 * 30 + 1)) for index in range(40)])
    settings = {"data_path": data, "max_steps": 6, "save_strategy": "steps", "save_steps": 4, "model_max_length": 100}
    settings |= {"dataloader_num_workers": 2, "gradient_accumulation_steps": 2, "shuffle_buffer": 5}
    whole = runs.train(make_checkpoint(), tmp_path / "whole", "--streaming", **settings)
    dropped = [json.loads(line) for line in (whole / "overlength.jsonl").read_text().splitlines()]
    assert {entry["action"] for entry in dropped} == {"dropped"}
    assert len({entry["id"] for entry in dropped}) == len(dropped) > 3
    resumed = tmp_path / "resumed"
    runs.train(
        make_checkpoint(), resumed, "--streaming", **settings | {"max_steps": 4, "lr_scheduler_type": "constant"}
    )
    again = {**settings, "resume_from_checkpoint": resumed / "checkpoint-4", "lr_scheduler_type": "constant"}
    runs.train(make_checkpoint(), resumed, "--streaming", **again)
    constant = runs.train(make_checkpoint(), tmp_path / "c", "--streaming", **settings, lr_scheduler_type="constant")
    assert runs.losses(resumed) == runs.losses(constant)


def test_a_stream_of_weighted_sources_is_packed(make_checkpoint, tmp_path):
    first = write(tmp_path / "first.jsonl", [LIGHT] * 30, weight=3)
    second = write(tmp_path / "second.jsonl", [HEAVY] * 30)
    words = ["--data_path", str(first), f"{second}:2", "--mix", "interleave", "--streaming", "--packing", "auto"]
    settings = {"model_max_length": 200, "max_steps": 3, "dataloader_num_workers": 1, "seed": 1}
    out = runs.train(make_checkpoint(), tmp_path / "out", *words, **settings)
    counted = [[entry.get(f"tokens/{name}", 0) for name in ("first.jsonl", "second.jsonl")] for entry in history(out)]
    assert len(counted) == 3 and all(330 < sum(tokens) <= 400 for tokens in counted)  # 2 rows a step
    assert all(sum(tokens) for tokens in zip(*counted, strict=True))


def test_the_policy_for_long_samples_and_the_cache(make_checkpoint, tmp_path):
    data = write(tmp_path / "data.json", [LIGHT, HEAVY, ("long", "word " * 300)])
    with pytest.raises(ValueError, match="1 of 3 conversations exceed 100 tokens"):
        runs.train(make_checkpoint(), tmp_path / "a", data_path=data, model_max_length=100, overlength="error")
    settings = {"data_path": data, "model_max_length": 100, "overlength": "drop", "max_steps": 1}
    cached = [
        runs.train(make_checkpoint(), tmp_path / name, **settings, tokenized_cache=cache)
        for name, cache in (("b", "none"), ("c", tmp_path / "cache"), ("d", tmp_path / "cache"))
    ]
    assert len({tuple(runs.losses(folder)) for folder in cached}) == 1
    lists = {(folder / "overlength.jsonl").read_text() for folder in cached}
    assert len(lists) == 1 and json.loads(*lists)["action"] == "dropped"
    assert len(list((tmp_path / "cache").glob("*/samples.arrow"))) == 1
