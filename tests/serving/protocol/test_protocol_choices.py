"""Answers on their way to a client: whole and in chunks, read by the types of the openai client."""

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from PIL import Image

from qwen_vl.checkpoint import loading
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.protocol import response
from qwen_vl.serving.protocol.choices import ChoiceStream
from qwen_vl.serving.protocol.request import Limits, parse

BOX = "<ref>猫</ref><box>(100,200),(300,400)</box>"
CALL = 'I draw.\nAction: draw\nAction Input: {"p": "猫"}\n'
TOOLS = {"tools": [{"type": "function", "function": {"name": "draw"}}]}
FUNCTIONS = {"functions": [{"name": "draw"}]}
IMAGES = [SentImage.of(Image.new("RGB", size)) for size in ((9, 9), (640, 480))]


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint):
    return loading.load_tokenizer(make_checkpoint())


def request(**fields):
    return parse({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields, Limits())


def answer(tokenizer, text, *, finish="stop", images=(), size=1, **fields):
    """Return (message and finish reason of the whole answer, those of its stream, the contents of the chunks)."""
    asked, ids = request(**fields), tokenizer.encode(text)
    stream = ChoiceStream(asked, tokenizer, images=images)
    chunks = response.Chunks("chatcmpl-1", 5, "m", asked.calls_as, asked.include_usage)
    sent = [chunks.start(0)]
    for place in range(0, len(ids), size):
        part = ids[place : place + size]
        sent.append(chunks.text(0, stream.push(part, [-0.5] * len(part))))
        if stream.stopped:
            break
    choice = stream.close(finish)
    sent = [ChatCompletionChunk.model_validate(chunk) for chunk in [*sent, *chunks.end(0, choice)] if chunk]
    whole = ChatCompletion.model_validate(
        response.completion(
            "chatcmpl-1", created=5, model="m", choices=[choice], calls_as=asked.calls_as, usage=response.usage(3, 4, 2)
        )
    )
    return whole.choices[0], [chunk.choices[0] for chunk in sent]


def joined(sent):
    return "".join(choice.delta.content or "" for choice in sent)


@pytest.mark.parametrize("size", [1, 3, 99])
def test_a_stream_says_what_the_whole_answer_says(tokenizer, size):
    whole, sent = answer(tokenizer, " 你好 🐱 there STOP no", size=size, stop="STOP")
    assert whole.message.content == joined(sent) == "你好 🐱 there "
    assert whole.finish_reason == sent[-1].finish_reason == "stop"
    assert sent[0].delta.role == "assistant" and sent[0].delta.content == ""
    assert [choice.finish_reason for choice in sent[:-1]] == [None] * (len(sent) - 1)
    assert not any("\ufffd" in (choice.delta.content or "") for choice in sent)
    assert "refusal" in whole.message.model_fields_set and whole.message.refusal is None
    assert answer(tokenizer, "cut", finish="length")[0].finish_reason == "length"


def test_boxes_are_in_the_message_and_in_the_last_delta(tokenizer):
    whole, sent = answer(tokenizer, f"Here: {BOX}", images=IMAGES)
    found = whole.message.model_extra["grounding"]
    assert found == sent[-1].delta.model_extra["grounding"]
    assert (found["picture"], found["width"], found["height"]) == (2, 640, 480)
    assert found["objects"][0]["box"] == [64.0, 96.0, 192.0, 192.0] and found["objects"][0]["label"] == "猫"
    item = found["objects"][0]
    assert whole.message.content[item["start"] : item["end"]] == "<box>(100,200),(300,400)</box>"
    for options in ({"images": IMAGES, "grounding": False}, {}):
        whole, sent = answer(tokenizer, BOX, **options)
        assert not whole.message.model_extra and not sent[-1].delta.model_extra and whole.message.content == BOX
    assert not answer(tokenizer, "none", images=IMAGES)[0].message.model_extra


def test_a_call_comes_back_and_none_of_its_text_is_streamed_before(tokenizer):
    whole, sent = answer(tokenizer, f"{CALL}Observation: made up", **TOOLS)
    assert whole.finish_reason == sent[-1].finish_reason == "tool_calls"
    (call,) = whole.message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == ("function", "draw", '{"p": "猫"}')
    assert whole.message.content == joined(sent) == "I draw."
    (delta,) = [choice.delta for choice in sent if choice.delta.tool_calls]
    assert delta.tool_calls[0].index == 0 and delta.tool_calls[0].id == call.id and call.id.startswith("call_")
    assert delta.tool_calls[0].function == delta.tool_calls[0].function.model_copy(update=call.function.model_dump())
    whole, sent = answer(tokenizer, CALL, **FUNCTIONS)
    assert whole.finish_reason == "function_call" and whole.message.function_call.name == "draw"
    assert sent[-2].delta.function_call.arguments == '{"p": "猫"}'
    whole, _ = answer(tokenizer, CALL)  # without tools it is text
    assert whole.message.content == CALL.strip() and not whole.message.tool_calls


def test_a_final_answer_streams_as_it_comes(tokenizer):
    text = "Thought: I know.\nFinal Answer: one two three"
    whole, sent = answer(tokenizer, text, **TOOLS)
    assert whole.message.content == joined(sent) == "one two three" and whole.finish_reason == "stop"
    assert sum(bool(choice.delta.content) for choice in sent) >= 3
    text = "T\nAction: draw\nFinal answer: x\nAction Input: y"  # an action came first, so all of it waits
    whole, sent = answer(tokenizer, text, **TOOLS)
    assert whole.message.tool_calls[0].function.arguments == "y" and joined(sent) == whole.message.content
    whole, sent = answer(tokenizer, "just text", finish="length", **TOOLS)
    assert whole.message.content == joined(sent) == "just text" and whole.finish_reason == "length"


def test_log_probabilities_are_of_every_token(tokenizer):
    whole, sent = answer(tokenizer, "你 ok", logprobs=True)
    entries = whole.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == "你 ok"
    assert {entry.logprob for entry in entries} == {-0.5} and len(entries) == len(tokenizer.encode("你 ok"))
    assert [entry for choice in sent if choice.logprobs for entry in choice.logprobs.content] == entries
    assert answer(tokenizer, "a")[0].logprobs is None


def test_usage_and_models():
    chunks = response.Chunks("chatcmpl-1", 5, "m", "tool_calls", True)
    counted = response.usage(3, 4, 2)
    last = ChatCompletionChunk.model_validate(chunks.usage(counted))
    assert last.choices == [] and (last.usage.total_tokens, last.usage.prompt_tokens_details.cached_tokens) == (7, 2)
    assert chunks.start(1)["usage"] is None and chunks.start(1)["choices"][0]["index"] == 1
    card = response.model_card("cat", created=1, root="/m", parent="base", max_model_len=2048)
    assert response.models([card]) == {"object": "list", "data": [card]} and card["parent"] == "base"
