"""Answering a task: keys, resume, processes; what another folder, model or image does."""

import json
import random
import threading
from dataclasses import replace
from typing import ClassVar

import pytest
from helpers.evaluations import IDENTITY, RANKED, SQUARES, FakeModel, png, read_squares, write_data

from qwen_vl.evaluation import keys, runner
from qwen_vl.evaluation.processes import Processes
from qwen_vl.evaluation.records import Decoding
from qwen_vl.evaluation.tasks import Overrides, Subset, Task, changed, restored, run_name


@pytest.fixture
def data(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path / "data"


def task_of(data, benchmark=SQUARES, overrides=None, subset=None):
    """Return the task of the squares, as `suite.tasks_of` makes it."""
    overrides, subset = overrides or Overrides(), subset or Subset()
    records, asked = read_squares({"records": data / "squares.jsonl"}), changed(benchmark, overrides)
    name = run_name(benchmark, asked, subset)
    return Task(asked, name, subset.of(records), len(records), subset)


def answer(data, model, results, *, processes=None, batch_size=2, **options):
    """Answer the squares and return the counts."""
    task, processes = task_of(data, **options), processes or Processes()
    digests = runner.image_digests(task, processes)
    source = runner.ModelSource(model.identity, lambda: model)
    return runner.answer(task, source, results, digests=digests, batch_size=batch_size, processes=processes)


def answers_file(results, run="squares"):
    return results / "fake-01234567" / run / "answers.jsonl"


class Rank(Processes):
    """One of several threads that stand for processes."""

    shared: ClassVar[dict] = {}

    def gather(self, value):
        barrier, values = self.shared["barrier"], self.shared["values"]
        values[self.rank] = value
        barrier.wait(20)
        copied = [values[rank] for rank in range(self.size)]
        barrier.wait(20)
        return copied


def answer_in_processes(size, data, results, models):
    Rank.shared = {"barrier": threading.Barrier(size), "values": {}}
    counts = [None] * size

    def work(rank):
        try:
            counts[rank] = answer(data, models[rank], results, processes=Rank(rank, size))
        except KeyboardInterrupt:
            Rank.shared["barrier"].abort()  # it died
        except threading.BrokenBarrierError:
            pass

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return counts


def test_batch_size_and_processes_leave_no_trace(data, tmp_path):
    whole = tmp_path / "whole"
    assert answer(data, FakeModel(), whole) == (12, 0, 12, 0)
    expected = answers_file(whole).read_bytes()
    for size in (1, 8, 32):
        answer(data, FakeModel(), tmp_path / str(size), batch_size=size)
        assert answers_file(tmp_path / str(size)).read_bytes() == expected
    for size in (2, 3, 5):
        models, results = [FakeModel() for _ in range(size)], tmp_path / f"p{size}"
        assert answer_in_processes(size, data, results, models) == [(12, 0, 12, 0)] * size
        assert answers_file(results).read_bytes() == expected
        asked = [{text.split("</img>")[0] for text in model.asked} for model in models]
        assert sum(map(len, asked)) == 4  # the questions about an image stay together
    settings = json.loads(answers_file(whole).with_name("settings.json").read_text())
    assert settings["num_records"] == settings["complete_size"] == 12 and settings["style"] == "raw"
    assert settings["template"] == "<img>{image}</img>{question} Answer:" and settings["limit"] is None


def test_an_interrupted_run_asks_only_what_is_missing(data, tmp_path):
    """Killed again and again, with another number of processes each time."""
    answer(data, FakeModel(), tmp_path / "whole")
    chance, models = random.Random(3), []
    for size in (1, 3, 2):
        now = [FakeModel(dies_after=1 if rank == 0 else None) for rank in range(size)]
        models += now
        if size > 1:
            answer_in_processes(size, data, tmp_path / "r", now)
        else:
            with pytest.raises(KeyboardInterrupt):
                answer(data, now[0], tmp_path / "r")
        for path in answers_file(tmp_path / "r").parent.glob("answers.rank-*"):  # tear the last line of some
            if chance.random() < 0.5:
                path.write_bytes(path.read_bytes() + b'{"id": "3-')
    last = FakeModel()
    counts = answer(data, last, tmp_path / "r")
    assert counts.reused == 12 - len(last.asked) and counts.reused >= 6
    asked = [text for model in [*models, last] for text in model.asked]
    assert len(asked) == len(set(asked)) == 12
    assert answers_file(tmp_path / "r").read_bytes() == answers_file(tmp_path / "whole").read_bytes()


def test_the_key_has_what_an_answer_depends_on_and_no_path(data, tmp_path):
    task = task_of(data)
    digests = runner.image_digests(task, Processes())
    prompt, name = task.prompts()[0], task.records[0].images[0].name

    def key(model=IDENTITY, prompt=prompt, decoding=SQUARES.decoding, images=digests, **options):
        return keys.answer_key(model, prompt, decoding, images=images, **options)

    others = [
        key(replace(IDENTITY, fingerprint="f")),
        key(replace(IDENTITY, tokenizer="u")),
        key(replace(IDENTITY, dtype="bfloat16")),
        key(prompt=replace(prompt, style="chat")),
        key(prompt=replace(prompt, system="s")),
        key(prompt=replace(prompt, history=((("a",), "b"),))),
        key(prompt=replace(prompt, parts=(*prompt.parts, "!"))),
        key(prompt=replace(prompt, parts=(f"<img>{name}</img>", *prompt.parts[1:]))),  # text, not an image
        key(decoding=Decoding(max_new_tokens=6)),
        key(decoding=RANKED.decoding, num_options=3),
        key(decoding=RANKED.decoding, num_options=4),
        key(images={**digests, name: "other bytes"}),
    ]
    assert len({key(), *others}) == 1 + len(others)
    moved = tmp_path / "elsewhere"
    data.rename(moved)
    again = task_of(moved)
    digests = runner.image_digests(again, Processes())
    assert keys.answer_key(IDENTITY, again.prompts()[0], SQUARES.decoding, images=digests) == key()
    assert key(replace(IDENTITY, label="other", path="/elsewhere")) == key()


def test_changed_images_are_answered_anew(data, tmp_path):
    answer(data, FakeModel(), tmp_path / "r")
    (data / "2.png").write_bytes(png((200, 0, 0)))
    model = FakeModel()
    assert answer(data, model, tmp_path / "r") == (12, 9, 3, 0)
    assert {text.split("/")[-2].split("<")[0] for text in model.asked} == {"2.png"}


def test_a_retrained_model_gets_a_folder_of_its_own(data, tmp_path):
    answer(data, FakeModel(), tmp_path)
    retrained = FakeModel(replace(IDENTITY, fingerprint="9" * 64))
    assert answer(data, retrained, tmp_path) == (12, 0, 12, 0)
    assert {path.name for path in tmp_path.glob("fake-*")} == {"fake-01234567", "fake-99999999"}


def test_folders_of_others_are_refused(data, tmp_path):
    """Another model, other settings, another benchmark, answers without their settings."""
    answer(data, FakeModel(), tmp_path)
    folder = tmp_path / "fake-01234567"
    with pytest.raises(ValueError, match=r"model\.json: is of another model \(fingerprint: .* --label"):
        answer(data, FakeModel(replace(IDENTITY, fingerprint="01234567" + "8" * 56)), tmp_path)
    with pytest.raises(ValueError, match=r"model\.json: is of another model \(dtype: 'float32' there, 'bfloat16' now"):
        answer(data, FakeModel(replace(IDENTITY, dtype="bfloat16")), tmp_path)
    with pytest.raises(ValueError, match=r"squares/settings\.json: .*other settings \(template: .*--output_dir"):
        answer(data, FakeModel(), tmp_path, benchmark=replace(SQUARES, template="caption"))
    (folder / "squares" / "answers.jsonl").write_text('{"id": "textvqa-1", "key": "k", "text": "x"}\n')
    with pytest.raises(ValueError, match=r"answers\.jsonl:1: answers a record 'textvqa-1'.*another benchmark"):
        answer(data, FakeModel(), tmp_path)
    (folder / "squares" / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"squares: has answers but no settings\.json"):
        answer(data, FakeModel(), tmp_path)


def test_two_commands_do_not_write_into_one_folder(data, tmp_path):
    problems = []

    class Impatient(FakeModel):
        def answer(self, *args, **options):
            with pytest.raises(ValueError, match="another evaluation is writing there"):
                answer(data, FakeModel(), tmp_path)
            problems.append(1)
            super().answer(*args, **options)

    assert answer(data, Impatient(), tmp_path).answered == 12 and problems == [1]
    assert answer(data, FakeModel(), tmp_path).reused == 12  # the lock is free again


def test_missing_images_are_named_before_anything_is_answered(data, tmp_path):
    (data / "1.png").unlink()
    with pytest.raises(ValueError, match=r"^squares: 1 of 4 images cannot be read.*\n.*1\.png \(record 1-0\)$"):
        answer(data, FakeModel(), tmp_path)
    assert not any(tmp_path.glob("fake-*"))


def test_a_broken_image_leaves_its_records_unanswered_until_it_is_repaired(data, tmp_path):
    (data / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert answer(data, FakeModel(), tmp_path) == (12, 0, 9, 3)
    lines = [json.loads(line) for line in answers_file(tmp_path).read_text().splitlines()]
    errors = {line["id"]: line["error"] for line in lines if line["finish"] == "error"}
    assert list(errors) == ["1-0", "1-1", "1-2"] and "1.png" in errors["1-0"]
    assert answer(data, FakeModel(), tmp_path) == (12, 9, 0, 3)  # still broken
    (data / "1.png").write_bytes(png("red"))
    assert answer(data, FakeModel(), tmp_path) == (12, 9, 3, 0)


def test_names_of_runs_say_what_differs():
    def name(subset=None, benchmark=SQUARES, **given):
        return run_name(benchmark, changed(benchmark, Overrides(**given)), subset or Subset())

    assert name() == name(style="raw") == name(Subset(seed=3)) == name(template="vqa") == "squares"
    assert name(end="im_end", max_new_tokens=9) == "squares+max9+im_end"
    assert changed(SQUARES, Overrides(style="chat")).decoding.end == "im_end" and name(style="chat") == "squares+chat"
    assert name(style="chat", end="endoftext") == "squares+chat+endoftext"
    with pytest.raises(ValueError, match="squares: at least 6 new tokens, but at most 5; correct --min_new_tokens"):
        name(min_new_tokens=6)
    assert name(Subset(50, 10, 7), shots=4) == "squares+4shot+limit50+offset10+seed7"
    assert name(kind="rank") == "squares+rank" and name(benchmark=RANKED, kind="generate") == "squares_ranked+generate"
    assert name(benchmark=RANKED, kind="generate", max_new_tokens=3) == "squares_ranked+generate+max3"
    assert run_name(SQUARES, SQUARES, Subset(5), 8) == "squares+8frames+limit5"
    assert name(template="<img>{image}</img>{question}").startswith("squares+template-")
    asked = changed(RANKED, Overrides(kind="generate", style="chat", shots=2))
    settings = Task(asked, "x", [], 0, Subset(5, 1, 2)).settings()
    assert restored(RANKED, json.loads(json.dumps(settings))) == (
        replace(asked, template="<img>{image}</img>{question} Answer:"),
        Subset(5, 1, 2),
    )


def test_a_subset_is_random_seeded_and_tears_no_group(data):
    records = read_squares({"records": data / "squares.jsonl"})
    ids = [record.id for record in records]
    drawn = [record.id for record in Subset(5, seed=1).of(records)]
    assert len(drawn) == 5 and drawn == [id for id in ids if id in drawn] and drawn != ids[:5]
    assert drawn == [record.id for record in Subset(5, seed=1).of(records)]
    assert drawn != [record.id for record in Subset(5, seed=2).of(records)]
    rest = [record.id for record in Subset(offset=5, seed=1).of(records)]
    assert sorted(drawn + rest) == ids
    groups = Subset(4).of(records, lambda record: record.cluster)
    assert len(groups) == 6 and len({record.cluster for record in groups}) == 2
    assert Subset().of(records) == records and Subset(99).of(records) == records


def test_a_model_that_cannot_be_loaded_leaves_no_run(data, tmp_path):
    def fails():
        raise ValueError("device 'moon' cannot be used here")

    def load(task):
        source = runner.ModelSource(IDENTITY, fails)
        digests = runner.image_digests(task, Processes())
        return runner.answer(task, source, tmp_path, digests=digests, batch_size=2, processes=Processes())

    with pytest.raises(ValueError, match="moon"):
        load(task_of(data))
    assert not list(tmp_path.glob("fake*/*/"))
    with pytest.raises(KeyboardInterrupt):
        answer(data, FakeModel(dies_after=2), tmp_path)
    with pytest.raises(ValueError, match="moon"):
        load(task_of(data))
    assert len(answers_file(tmp_path).read_text().splitlines()) == 4
