"""The engine: answers of `generate` for requests that run together, and what it does when something goes wrong."""

import time

import pytest
import torch
from helpers.engines import NEW_TOKENS, answer, answer_all, generated, image, request

from qwen_vl.model.chat_qwen import decode_answer
from qwen_vl.serving.conversation import Message
from qwen_vl.serving.engine import (
    Engine,
    EngineRequest,
    EngineSettings,
    EngineStopped,
    PromptTooLong,
    QueueFull,
    Sampling,
    UnknownModel,
    alone,
)
from qwen_vl.serving.engine.loading import load
from qwen_vl.serving.prompts import EncodedPrompt, encode

SETTINGS = EngineSettings(max_running=16, max_batch_tokens=48, page_size=16, kv_tokens=4096, num_images=8)


@pytest.fixture(scope="module")
def reference(make_checkpoint):
    return load(make_checkpoint(), device="cpu")


@pytest.fixture
def engine(make_checkpoint):
    with Engine.load(make_checkpoint(), settings=SETTINGS, name="tiny", device="cpu") as engine:
        yield engine


def test_requests_of_all_kinds_together_get_the_tokens_of_generate(engine, reference):
    model, tokenizer = reference
    requests = [
        request(engine, "Hello, who are you?"),
        request(engine, image(1), "What is it?"),
        request(engine, image(1), image(2), "Compare."),
        request(engine, "x " * 120),
        *[request(engine, image(number), f"Question {number}") for number in range(3, 11)],
    ]
    found = answer_all(engine, requests)
    assert found == [generated(model, tokenizer, one) for one in requests]
    assert len({tuple(ids) for ids in found}) >= 8, found
    assert engine.stats().running == engine.stats().images_used == 0


def test_an_answer_is_that_of_chat(engine, reference):
    model, tokenizer = reference
    one = request(engine, "Hello, who are you?")
    expected, _ = model.chat(tokenizer, "Hello, who are you?", max_new_tokens=NEW_TOKENS, do_sample=False)
    assert decode_answer(answer(engine, one)[0], tokenizer) == expected


def test_a_prompt_beyond_the_trained_length_runs_alone(engine, reference):
    model, tokenizer = reference
    long, short = request(engine, image(1), "word " * 250), request(engine, image(2), "What?")
    assert len(long.prompt.ids) > model.config.seq_length
    events = engine.stream(long)
    assert answer(engine, short)[0] == generated(model, tokenizer, short)
    assert [i for event in events for i in event.ids] == generated(model, tokenizer, long)


def test_an_answer_that_outgrows_the_trained_length_goes_on_alone(engine, reference, monkeypatch):
    model, tokenizer = reference
    length, went_on, run = model.config.seq_length, [], alone.answer

    def counted(view, ids, *args, **options):
        went_on.append(len(ids))
        run(view, ids, *args, **options)

    monkeypatch.setattr(alone, "answer", counted)
    words = (length - len(request(engine, image(1), "?").prompt.ids)) // 2 - 4
    long = request(engine, image(1), "word " * words + "?", new=40)
    assert length - 30 < len(long.prompt.ids) < length
    ids, last = answer(engine, long)
    assert (ids, last.finish, len(ids)) == (generated(model, tokenizer, long), "length", 40)
    assert went_on == [length]
    short = request(engine, "Hello", new=length)  # it may outgrow the length, but does not
    events = engine.stream(short)
    assert next(events).ids and went_on == [length]
    events.close()
    for size in (length - 1, length, length + 1):
        ids = (long.prompt.ids[:1] + request(engine, "a" * 2000).prompt.ids[1:])[:size]
        exact = EngineRequest("r", "tiny", EncodedPrompt(ids, ()), 3)
        assert answer(engine, exact)[0] == generated(model, tokenizer, exact), size
    assert went_on == [length, length, length, length + 1]


@pytest.mark.parametrize("with_image", [True, False])
def test_an_image_tag_that_the_model_wrote_is_a_token_beyond_the_trained_length_too(engine, reference, with_image):
    model, tokenizer = reference
    heads = [model.lm_head.weight, engine.model.lm_head.weight]
    stored = heads[0].detach().clone()
    column = torch.randn(stored.shape[1], generator=torch.Generator().manual_seed(0))
    parts = (image(1), "?") if with_image else ("?",)
    words = (model.config.seq_length - len(request(engine, *parts).prompt.ids)) // 2 - 8
    one = request(engine, *parts[:-1], "word " * words + "?", new=50)
    try:
        for head in heads:  # one of the two tokens wins always
            head.data.zero_()
            head.data[tokenizer.img_start_id], head.data[65] = column, -column
        ids, _ = answer(engine, one)
        assert len(one.prompt.ids) + 50 > model.config.seq_length > len(one.prompt.ids)
        assert tokenizer.img_start_id in ids[: model.config.seq_length - len(one.prompt.ids)]
        assert ids == generated(model, tokenizer, one)
    finally:
        for head in heads:
            head.data.copy_(stored)


def test_an_image_is_encoded_once_and_its_pages_are_shared(engine, monkeypatch):
    encoded, features = [], engine.encoder.features
    monkeypatch.setattr(engine.encoder, "features", lambda *args: encoded.extend(args[0]) or features(*args))
    first = request(engine, image(1), "What is it?")
    ids, last = answer(engine, first)
    messages = [Message("user", (image(1), "What is it?")), Message("assistant", (engine.tokenizer.decode(ids),))]
    prompt = encode(engine.tokenizer, [*messages, Message("user", ("And now?",))])
    again = EngineRequest("r", "tiny", prompt, NEW_TOKENS)
    assert last.num_cached == 0
    assert answer(engine, again)[1].num_cached >= (len(first.prompt.ids) - 1) // 16 * 16
    assert len(encoded) == 1


def test_sharing_keys_share_nothing(engine):
    for keys, parts in [("ab", ("The same words of two people, " * 5,)), ("cd", (image(1), "What is it?"))]:
        mine, other = (request(engine, *parts, sharing_key=key) for key in keys)
        ids = answer(engine, mine)[0]
        assert answer(engine, mine)[1].num_cached > 0
        other_ids, last = answer(engine, other)
        assert (other_ids, last.num_cached) == (ids, 0)


def test_more_images_than_rows_go_through_one_after_another(engine, reference):
    model, tokenizer = reference
    before = engine.table.rows.shape
    for number in range(40):
        one = request(engine, image(number), "?", new=1)
        answer(engine, one)
    last = request(engine, image(3), "What?")
    assert answer(engine, last)[0] == generated(model, tokenizer, last)
    ranges = engine.table.ranges
    assert (engine.table.rows.shape, len(ranges.by_key), len(ranges.by_slot)) == (before, 8, 8)


def test_closing_a_stream_cancels(engine):
    stream = engine.stream(request(engine, image(1), "Go on", new=300))
    next(stream)
    stream.close()
    assert engine.stats()[:2] == (0, 0)
    assert answer(engine, request(engine, "Hello"))[1].finish in ("stop", "length")


def test_limits(make_checkpoint):
    settings = EngineSettings(
        max_running=1, max_waiting=1, max_batch_tokens=48, page_size=16, kv_tokens=1024, request_seconds=0.0
    )
    engine = Engine.load(make_checkpoint(), settings=settings, name="tiny", device="cpu")
    with pytest.raises(EngineStopped):
        engine.submit(request(engine, "Hello"), print)
    with engine:
        with pytest.raises(UnknownModel, match="other: no model of this name; there are tiny"):
            engine.submit(request(engine, "Hello", model="other"), print)
        with pytest.raises(PromptTooLong, match="together they may have 1024"):
            engine.submit(request(engine, "Hello", new=2000), print)
        last = list(engine.stream(request(engine, "Hello", new=400)))[-1]
        assert (last.finish, last.error) == ("error", "not done within 0 seconds")
        with engine.turns:  # nothing proceeds
            engine.settings = EngineSettings(max_running=1, max_waiting=1, request_seconds=None)
            for _ in range(2):
                engine.submit(request(engine, "Hello"), lambda event: None)
            with pytest.raises(QueueFull, match="2 requests are open"):
                engine.submit(request(engine, "Hello"), print)
        engine.stop(seconds=30)
    assert engine.stats().generated_tokens > 2 and not engine.alive


def test_a_loop_that_dies_ends_all_requests(engine, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr(engine.model.transformer.h[0], "forward", fail)
    with engine.turns:  # the first one does not fail before the others are there
        streams = [engine.stream(request(engine, "Hello")) for _ in range(3)]
    assert {list(stream)[-1].finish for stream in streams} == {"error"}
    for _ in range(100):
        if not engine.alive:
            break
        time.sleep(0.05)
    assert not engine.alive
    with pytest.raises(EngineStopped):
        engine.submit(request(engine, "Hello"), print)


@pytest.mark.parametrize(
    "error, is_alive", [(RuntimeError, True), (torch.OutOfMemoryError, True), (torch.AcceleratorError, False)]
)
def test_an_error_of_one_request_ends_the_engine_if_the_device_is_gone(engine, monkeypatch, error, is_alive):
    def fail(*args, **kwargs):
        raise error("broken")

    monkeypatch.setattr(engine.model, "get_image_features", fail)
    assert list(engine.stream(request(engine, image(1), "Hello")))[-1].error == "broken"
    assert engine.alive == is_alive


def test_sampling_and_logprobs(engine):
    greedy, expected = request(engine, "Hello", logprobs=True), None
    for event in engine.stream(greedy):
        expected = event
        assert event.logprobs == [0.0] * len(event.ids)
    assert expected.finish
    warm = request(engine, "Hello", sampling=Sampling(temperature=5.0, top_k=0), logprobs=True)
    answers = [answer(engine, warm)[0] for _ in range(4)]
    assert len({tuple(ids) for ids in answers}) == 4
    narrow = request(engine, "Hello", sampling=Sampling(temperature=2.0, top_k=1))
    assert answer(engine, narrow)[0] == answer(engine, greedy)[0]
