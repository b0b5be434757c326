"""The engine at its limits: its end under load, pages and ids that run out, and the memory that it takes by itself."""

import queue
import random
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from helpers.engines import answer, answer_all, generated, image, request

from qwen_vl.serving.engine import Engine, EngineSettings, EngineStopped, attention
from qwen_vl.serving.engine.loading import load

SETTINGS = EngineSettings(max_running=16, max_batch_tokens=48, page_size=16, kv_tokens=4096, num_images=8)


@pytest.fixture(scope="module")
def reference(make_checkpoint):
    return load(make_checkpoint(), device="cpu")


def engine_of(folder, **options):
    settings = replace(SETTINGS, **options)
    return Engine.load(folder, settings=settings, name="tiny", device="cpu")


def different_requests(engine, number, **options):
    """Return requests about different images, with texts of different lengths."""
    return [request(engine, image(one), f"Question {one}? " * (one % 5), **options) for one in range(number)]


def submitted(engine, requests):
    """Submit requests; return for each a queue of its events."""
    events = [queue.Queue() for _ in requests]
    for one, own in zip(requests, events, strict=True):
        engine.submit(one, own.put)
    return events


def test_a_stop_with_patience_lets_all_answers_finish(make_checkpoint, reference):
    with engine_of(make_checkpoint(), num_images=4) as engine:  # fewer rows than images, so some wait for rows
        requests = different_requests(engine, 12, new=30)
        events = submitted(engine, requests)
        engine.stop(seconds=60)
        with pytest.raises(EngineStopped):
            engine.submit(requests[0], print)
    said = [[*own.queue] for own in events]
    assert [[i for event in own for i in event.ids] for own in said] == [generated(*reference, one) for one in requests]
    assert {own[-1].finish for own in said} <= {"stop", "length"}
    assert engine.stats()[:2] == (0, 0) and engine.stats().images_used == 0


def test_a_stop_without_patience_ends_all_requests(make_checkpoint):
    with engine_of(make_checkpoint(), num_images=4) as engine:
        events = submitted(engine, different_requests(engine, 12, new=300))
        events[0].get(timeout=20)
        engine.stop()
    last = [[*own.queue][-1] for own in events]
    assert {(event.finish, event.error) for event in last} == {("error", "the server is stopping")}
    assert not any(thread.is_alive() for thread in engine.threads + engine.encoder.threads)


def test_answers_stay_right_when_pages_run_out(make_checkpoint, reference, monkeypatch):
    """Let ten requests want three times the pages there are: some lose theirs, and compute their prompts again."""
    with engine_of(make_checkpoint(), kv_tokens=544, num_images=16) as engine:
        manager = engine.lanes["tiny"].manager.batch_processor.offloading_manager
        lost, offload = [], manager.offload_requests
        monkeypatch.setattr(manager, "offload_requests", lambda: lost.append(offload()) or lost[-1])
        requests = different_requests(engine, 10, new=100)
        assert sum(len(one.prompt.ids) + 100 for one in requests) > 3 * 544
        assert answer_all(engine, requests) == [generated(*reference, one) for one in requests]
        assert any(lost) and engine.alive and engine.stats()[:2] == (0, 0)
        again = request(engine, "Hello")
        assert answer(engine, again)[0] == generated(*reference, again)


def test_answers_stay_right_when_others_are_cancelled(make_checkpoint, reference):
    """Cancel two of three requests at random moments, with fewer rows than images: rows never get another image."""
    with engine_of(make_checkpoint(), num_images=3) as engine:
        rng, expected, open_requests = random.Random(0), {}, []
        for number in range(60):
            one = request(engine, image(number % 8), "What is it?", new=8, sharing_key=str(number % 2))
            events = queue.Queue()
            cancel = engine.submit(one, events.put)
            if number % 3:
                threading.Timer(rng.random() / 4, cancel).start()
            else:
                open_requests.append((number % 8, one, events))
            time.sleep(rng.random() / 50)
        for name, one, events in open_requests:
            ids = []
            while (event := events.get(timeout=30)).finish is None:
                ids += event.ids
            if name not in expected:
                expected[name] = generated(*reference, one)
            assert (ids + event.ids, event.error) == (expected[name], None)
        assert len({tuple(ids) for ids in expected.values()}) > 3 and len(open_requests) == 20
    assert engine.stats()[:2] == (0, 0) and engine.stats().images_used == 0


def test_answers_stay_right_when_ids_begin_again(make_checkpoint, reference):
    """Use up the ids of images several times: pages of an image are never found under the ids of another one."""
    with engine_of(make_checkpoint(), num_images=4) as engine:
        ranges = engine.table.ranges
        ranges.num_numbers = 8  # as after 8 million images
        salts = set()
        for number in range(30):
            one = request(engine, image(number), "What is it?", new=4)
            assert answer(engine, one)[0] == generated(*reference, one), number
            salts.add(ranges.salt_of(""))
        assert len(salts) == 4  # renewed three times in 30 images
        again = [answer(engine, request(engine, image(29), "What is it?", new=4))[1].num_cached for _ in range(2)]
        assert min(again) > 0


def test_the_room_for_keys_and_values_follows_the_free_memory(make_checkpoint, monkeypatch):
    def with_free(mib):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=mib * 2**20))
        return Engine.load(make_checkpoint(), settings=EngineSettings(), device="cpu").tokens

    size = 2 * 2 * 64 * 4  # keys and values, layers, width, bytes of float32
    assert with_free(16) == int(16 * 2**20 * 0.3 / size) // 32 * 32
    assert with_free(2**20) == 64 * 512  # no more than all running requests can use
    with pytest.raises(ValueError, match=r"room for keys and values of 0 tokens in each of 1 models; .* at least 576"):
        with_free(0)
    with pytest.raises(ValueError, match=r"kv_tokens is 575; .* at least 576"):
        Engine.load(make_checkpoint(), settings=EngineSettings(kv_tokens=575), device="cpu")


def test_the_default_settings_answer(make_checkpoint, reference):
    with Engine.load(make_checkpoint(), name="tiny", device="cpu") as engine:
        requests = different_requests(engine, 3)
        assert answer_all(engine, requests) == [generated(*reference, one) for one in requests]


def test_the_masked_attention_of_other_devices_answers(make_checkpoint, reference, monkeypatch):
    """Check what runs on a GPU: the attention of transformers, with a mask over all requests of a pass."""
    monkeypatch.setattr(attention, "is_used_for", lambda model: False)
    with engine_of(make_checkpoint(), kv_tokens=2048) as engine:
        io = engine.lanes["tiny"].manager.batch_processor.inputs_and_outputs
        assert io.attention_mask["full_attention"].shape[-2:] == (48, 2048 + 48)
        requests = different_requests(engine, 6)
        assert answer_all(engine, requests) == [generated(*reference, one) for one in requests]
    monkeypatch.undo()
    with engine_of(make_checkpoint()) as engine:
        assert engine.lanes["tiny"].manager.batch_processor.inputs_and_outputs.attention_mask is None


def test_a_model_in_int4_answers(make_int4_checkpoint):
    folder = make_int4_checkpoint()
    model, tokenizer = load(folder, device="cpu", dtype=torch.float32)
    with Engine.load(folder, settings=SETTINGS, name="tiny", device="cpu", dtype=torch.float32) as engine:
        requests = [request(engine, "Hello, who are you?"), *different_requests(engine, 4)]
        found = answer_all(engine, requests)
        assert found == [generated(model, tokenizer, one) for one in requests]
        assert len({tuple(ids) for ids in found}) > 2
