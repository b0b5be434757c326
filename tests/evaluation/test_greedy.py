"""Answers and rankings of many prompts: those of one prompt at a time by the model itself, whatever the batches."""

import io
import random
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from qwen_vl.checkpoint import loading
from qwen_vl.evaluation import greedy
from qwen_vl.evaluation.encoding import decode, encode, option_ids
from qwen_vl.evaluation.passes import Passes
from qwen_vl.evaluation.records import Decoding, ImageSource, Prompt
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.model.logits_qwen import LogitsError

WORDS = ["what", "is", "the", "color", "of", "this", "cup", "and", "how", "many", "are", "there", "on", "table"]
DECODING = Decoding(9, min_new_tokens=2)


def image(number):
    """A source of a random image."""
    levels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(levels).save(content, "PNG")
    return ImageSource.from_bytes(f"{number}.png", content.getvalue())


@pytest.fixture(scope="module")
def loaded(make_checkpoint):
    return loading.load_model(make_checkpoint()).eval(), loading.load_tokenizer(make_checkpoint())


@pytest.fixture(scope="module")
def prompts():
    """Raw and chat prompts, with and without images, and two beyond the trained length of 512 tokens."""
    rng, images = random.Random(0), [image(number) for number in range(6)]

    def words(most):
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))

    made = [Prompt((rng.choice(images), words(30) + " Answer:")) for _ in range(10)]
    for _ in range(4):
        history = (((rng.choice(images), "\n" + words(5)), words(3)),)
        made.append(Prompt((words(20), rng.choice(images), words(4)), "chat", "Be brief.", history))
    made += [Prompt((words(10),)), Prompt((words(90),), "chat"), Prompt((images[0],)), Prompt((images[0], images[1]))]
    return [*made, Prompt((images[2], " ".join(WORDS * 60))), Prompt((" ".join(WORDS * 50),))]


@pytest.fixture(scope="module")
def ends(loaded):
    """Ids that end an answer here: many, so that rows end at different steps."""
    tokenizer = loaded[1]
    return [tokenizer.eod_id, *range(0, 1000, 5)]


def answers(loaded, prompts, batch_size, **options):
    """Texts and rankings in the order of the prompts."""
    said, ranked = {}, {}
    calls = {"batch_size": batch_size, **options}
    greedy.greedy_answers(*loaded, prompts, DECODING, on_batch=lambda one: said.update(dict(one)), **calls)
    counts = [2 + len(prompt.text) % 3 for prompt in prompts]
    greedy.rank_options(*loaded, prompts, counts, on_batch=lambda one: ranked.update(dict(one)), **calls)
    return [said[number] for number in range(len(prompts))], [ranked[number] for number in range(len(prompts))]


def test_answers_are_those_of_one_prompt_at_a_time(loaded, prompts, ends, monkeypatch):
    """Text, number of tokens and end as `generate` has them; losses as one pass per option has them."""
    monkeypatch.setattr(greedy, "end_ids", lambda *words: ends)
    model, tokenizer = loaded
    said, ranked = answers(loaded, prompts, 8)
    settings = {"do_sample": False, "max_new_tokens": 9, "min_new_tokens": 2, "eos_token_id": ends}
    for prompt, text, ranking in zip(prompts, said, ranked, strict=True):
        encoded = encode(prompt, tokenizer)
        inputs = {"input_ids": torch.tensor([encoded.ids])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if encoded.images:
            inputs["pixel_values"] = torch.stack([pixels(one.open(), 64) for one in encoded.images])
        with torch.no_grad():
            ids = model.generate(**inputs, **settings)[0, len(encoded.ids) :].tolist()
            stopped = ids[-1] in ends
            ids = ids[: len(ids) - stopped]
            assert text == (decode(ids, tokenizer, DECODING), None, None, len(ids), text.finish, None)
            assert text.finish == ("stop" if stopped else "length")
            for number, loss in enumerate(ranking.losses):
                option = option_ids(tokenizer, 5)[number]
                labels = torch.tensor([[-100] * len(encoded.ids) + option])
                inputs["input_ids"] = torch.tensor([encoded.ids + option])
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                alone = model(**inputs, labels=labels, per_target_loss=True).loss.mean().item()
                assert loss == pytest.approx(alone, abs=1e-5)
        assert ranking.choice == ranking.losses.index(min(ranking.losses)) and ranking.finish == "rank"
    assert len({one.num_tokens for one in said}) > 3 and {one.finish for one in said} == {"stop", "length"}


def test_neither_batch_nor_order_nor_company_matters(loaded, prompts, ends, monkeypatch):
    monkeypatch.setattr(greedy, "end_ids", lambda *words: ends)
    monkeypatch.setattr(greedy, "DIGITS", 15)  # not even the last bit
    alone = answers(loaded, prompts, 1)
    for batch_size in (3, 8, 32):
        assert answers(loaded, prompts, batch_size) == alone
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    for some in (order, order[:7]):
        shuffled = answers(loaded, [prompts[number] for number in some], 5)
        assert shuffled == tuple([one[number] for number in some] for one in alone)


def test_letters_of_several_tokens_are_ranked_by_their_mean_loss(loaded, prompts, monkeypatch):
    model, tokenizer = loaded
    letters = [[65, 66, 67], [68], [69, 70]]
    monkeypatch.setattr(greedy, "option_ids", lambda tokenizer, count: letters[:count])
    some, found = prompts[:6] + prompts[-2:], {}
    greedy.rank_options(*loaded, some, [3] * 8, batch_size=3, on_batch=lambda one: found.update(dict(one)))
    for number, prompt in enumerate(some):
        encoded = encode(prompt, tokenizer)
        images = {}
        if encoded.images:
            images["pixel_values"] = torch.stack([pixels(one.open(), 64) for one in encoded.images])
        for letter, loss in zip(letters, found[number].losses, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([encoded.ids + letter]), **images).logits[0, -len(letter) - 1 : -1]
            assert loss == pytest.approx(F.cross_entropy(logits, torch.tensor(letter)).item(), abs=1e-5)


def test_an_image_is_encoded_once_and_its_prefix_read_once(loaded, monkeypatch):
    model, _ = loaded
    prompts = [Prompt((image(number % 3), f"question {number}?")) for number in range(12)]
    calls, forward = [], type(model).forward
    visual = model.transformer.visual.register_forward_hook(lambda *words: calls.append("image"))
    monkeypatch.setattr(type(model), "forward", lambda *w, **k: calls.append(k["input_ids"].shape) or forward(*w, **k))
    greedy.rank_options(*loaded, prompts, [4] * 12, batch_size=5, on_batch=lambda said: None)
    visual.remove()
    assert calls.count("image") == 3 and calls.count((1, 18)) == 3  # in float32 one at a time
    assert sorted(calls[i][0] for i in range(len(calls)) if calls[i] not in ("image", (1, 18))) == [2, 5, 5]


def test_an_image_that_cannot_be_opened_leaves_the_others(loaded, tmp_path):
    broken = ImageSource.from_bytes("broken.png", b"\x89PNG\r\n\x1a\n" + b"no image")
    gone = ImageSource.from_file(tmp_path / "gone.png")
    long = " ".join(WORDS * 60)
    some = [Prompt((image(0), "a")), Prompt((broken, "b")), Prompt((gone, "c")), Prompt((image(1), "d"))]
    some += [Prompt((broken, long)), Prompt((gone, "e"))]
    for found in answers(loaded, some, 4):
        assert [one.finish == "error" for one in found] == [False, True, True, False, True, True]
        assert all(name in one.error for one, name in zip(found[1:3], ("broken.png", "gone.png"), strict=True))
        assert found[4].error == found[1].error and all(one.text is one.losses is None for one in found[1:3])


def test_logits_that_are_not_finite_name_their_prompts(make_checkpoint, prompts):
    model, tokenizer = loading.load_model(make_checkpoint()).eval(), loading.load_tokenizer(make_checkpoint())
    model.transformer.ln_f.weight.data[0] = float("nan")
    for some in (prompts[:2], prompts[-1:]):
        for call, what in ((greedy.greedy_answers, DECODING), (greedy.rank_options, [4] * len(some))):
            with pytest.raises(LogitsError, match="not finite") as raised:
                call(model, tokenizer, some, what, batch_size=8, on_batch=lambda said: None)
            assert sorted(raised.value.prompts) == list(range(len(some)))


def test_bfloat16_and_eager_attention_answer_too(make_checkpoint, prompts, loaded):
    tokenizer = loaded[1]
    eager = loading.load_model(make_checkpoint(), attn_implementation="eager").eval()
    exact = answers(loaded, prompts, 8)
    for one, other in zip(answers((eager, tokenizer), prompts, 8)[1], exact[1], strict=True):
        assert one.losses == pytest.approx(other.losses, abs=1e-5)
    rounded = loading.load_model(make_checkpoint(), dtype=torch.bfloat16).eval()
    for one, other in zip(answers((rounded, tokenizer), prompts, 8)[1], exact[1], strict=True):
        assert one.losses == pytest.approx(other.losses, abs=0.2)


def test_training_goes_on_as_if_nothing_had_been_answered(make_checkpoint, prompts):
    model, tokenizer = loading.load_model(make_checkpoint()), loading.load_tokenizer(make_checkpoint())
    ids = torch.tensor([tokenizer.encode("a b c d")])

    def gradients():
        model.zero_grad()
        model.train()(ids, labels=ids).loss.backward()
        return [None if one.grad is None else one.grad.clone() for one in model.parameters()]

    before, state = gradients(), torch.get_rng_state()
    answers((model.eval(), tokenizer), prompts[:6], 4)
    assert torch.equal(torch.get_rng_state(), state) and not any(one.is_inference() for one in model.buffers())
    after = gradients()
    assert all(
        one is other if one is None else torch.equal(one, other) for one, other in zip(before, after, strict=True)
    )


def test_processes_that_keep_step_take_the_same_passes(make_checkpoint, prompts, loaded, ends, monkeypatch):
    """Two threads stand for processes; one has fewer prompts, the third none."""
    monkeypatch.setattr(greedy, "end_ids", lambda *words: ends)
    tokenizer, numbers = loaded[1], {}
    meeting = threading.Barrier(3, timeout=20)

    def most(self, number):
        numbers[threading.current_thread().name] = number
        meeting.wait()
        largest = max(numbers.values())
        meeting.wait()
        return largest

    monkeypatch.setattr(Passes, "most", most)
    parts = {"0": prompts[:9], "1": prompts[9:18], "2": []}
    calls, found = {name: [] for name in parts}, {name: {} for name in parts}
    models = {name: loading.load_model(make_checkpoint()).eval() for name in parts}

    def process(name):
        model, record = models[name], found[name]
        for part in (model.transformer.wte, model.transformer.visual, model.lm_head):
            part.register_forward_hook(lambda module, *words: calls[name].append(type(module).__name__))
        options = {"batch_size": 4, "on_batch": lambda said: record.update(dict(said)), "synced": True}
        greedy.greedy_answers(model, tokenizer, parts[name], DECODING, **options)

    threads = [threading.Thread(target=process, args=(name,), name=name) for name in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls["0"] == calls["1"] == calls["2"] and calls["0"].count("VisionTower") > 2
    monkeypatch.undo()
    monkeypatch.setattr(greedy, "end_ids", lambda *words: ends)
    alone = {}
    greedy.greedy_answers(*loaded, prompts[:18], DECODING, batch_size=4, on_batch=lambda said: alone.update(dict(said)))
    assert found["0"] == {n: alone[n] for n in range(9)} and found["1"] == {n: alone[n + 9] for n in range(9)}
