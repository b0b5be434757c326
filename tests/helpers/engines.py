"""Requests to an engine in the test process, and the answers that `generate` gives to them."""

import threading

import torch
from PIL import Image

from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.serving.conversation import Message, SentImage
from qwen_vl.serving.engine import EngineRequest
from qwen_vl.serving.prompts import encode

NEW_TOKENS = 12


def image(number):
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    return SentImage.of(Image.fromarray(noise.numpy()))


def request(engine, *parts, new=NEW_TOKENS, **options):
    prompt = encode(engine.tokenizer, [Message("user", parts)])
    return EngineRequest("r", options.pop("model", "tiny"), prompt, new, **options)


def answer(engine, one):
    """Return (ids, last event) of a request."""
    events = list(engine.stream(one))
    assert events[-1].error is None, events[-1].error
    return [i for event in events for i in event.ids], events[-1]


def generated(model, tokenizer, one):
    """Return the greedy ids of `generate`, up to the end token."""
    ends = [tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id]
    size = model.config.visual["image_size"]
    images = [pixels(sent.image, size) for sent in one.prompt.images]
    options = {"pixel_values": torch.stack(images)} if images else {}
    output = model.generate(
        torch.tensor([one.prompt.ids]),
        do_sample=False,
        top_p=None,
        top_k=None,
        max_new_tokens=one.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
        **options,
    )[0, len(one.prompt.ids) :].tolist()
    return output[:-1] if output[-1] in ends else output


def answer_all(engine, requests):
    """Return the ids of requests that are asked at once."""
    found = [None] * len(requests)

    def run(place):
        found[place] = answer(engine, requests[place])[0]

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
