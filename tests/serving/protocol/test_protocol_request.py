"""Requests: what is accepted, and the parameter that every refusal names."""

import json

import pytest
from PIL import Image

from qwen_vl.serving.conversation import Message, SentImage
from qwen_vl.serving.protocol.errors import ApiError
from qwen_vl.serving.protocol.request import ImageAddress, Limits, decode, parse

LIMITS = Limits(
    max_messages=5, max_parts=5, max_images=2, max_n=3, max_stop=4, max_stop_length=8, max_text=200, max_tools=2
)
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def body(**fields):
    return {"model": "m", "messages": [USER]} | fields


def part(url="http://x/a.png"):
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def says(role, content, **fields):
    return {"role": role, "content": content, **fields}


def test_a_plain_request_leaves_the_defaults_to_the_model():
    request = parse(body(user="u", metadata={}, store=True, verbosity="low", unknown=1, n=None, tools=[]), LIMITS)
    assert (request.model, request.n, request.stop, request.stream, request.functions) == ("m", 1, (), False, ())
    assert request.max_tokens is request.temperature is request.top_p is request.top_k is None
    assert request.grounding and not request.logprobs and not request.include_usage
    assert request.conversation([]) == ([Message("user", ("hi",))], False)


def test_the_fields_of_a_request():
    request = parse(
        body(
            **{"max_completion_tokens": 5, "max_tokens": 5, "temperature": 0, "top_p": 1, "top_k": -1, "n": 3},
            **{"stop": "x", "stream": True, "stream_options": {"include_usage": True}, "logprobs": True},
            **{"grounding": False, "frequency_penalty": 0.0, "logit_bias": {}, "top_logprobs": 0},
            **{"response_format": {"type": "text"}, "parallel_tool_calls": True},
        ),
        LIMITS,
    )
    assert (request.max_tokens, request.temperature, request.top_p, request.top_k, request.n) == (5, 0.0, 1.0, 0, 3)
    assert request.stop == ("x",) and request.stream and request.include_usage and request.logprobs
    assert not request.grounding


def test_images_are_addresses_until_they_are_read():
    messages = [
        says("developer", [{"type": "text", "text": "S"}]),
        says("user", [part("data:,a"), {"type": "text", "text": "<img>/etc/passwd</img>"}]),
        says("assistant", "b"),
        says("user", [part()]),
    ]
    request = parse(body(messages=messages), LIMITS)
    expected = [("data:,a", "messages[1].content[0]"), ("http://x/a.png", "messages[3].content[0]")]
    assert request.addresses == [ImageAddress(*pair) for pair in expected]
    one, two = (SentImage.of(Image.new("RGB", (2, 2), (shade, 0, 0))) for shade in (1, 2))
    conversation = request.conversation([one, two])
    assert not conversation.continues
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "user"]
    assert conversation.messages[1].parts == (one, "<img>/etc/passwd</img>")
    assert conversation.messages[3].parts == (two,)


def test_tools_become_text_and_their_results_continue_it():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    image = SentImage.of(Image.new("RGB", (2, 2)))
    messages = [says("user", [part()]), says("assistant", None, tool_calls=[call]), says("tool", "7", tool_call_id="c")]
    request = parse(body(messages=messages, tools=[TOOL], stop=["\nX"]), LIMITS)
    (asked, answered), continues = request.conversation([image])
    assert continues and request.stop_words == ("\nX", "X", "Observation:")
    assert asked.parts[0].endswith("Begin!\n\nQuestion: ") and asked.parts[1] == image
    assert answered.parts == ("Thought: I can use f.\nAction: f\nAction Input: {}\nObservation: 7\nThought:",)
    without = parse(body(messages=messages[:1], tools=[TOOL], tool_choice="none"), LIMITS)
    assert without.functions == () and without.conversation([image]).messages == [Message("user", (image,))]
    old = parse(body(functions=[{"name": "g", "parameters": {}}], function_call="auto"), LIMITS)
    assert old.calls_as == "function_call" and old.functions == ({"name": "g", "parameters": {}},)


REFUSED = [
    ({"model": None}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [USER] * 6}, "messages"),
    ({"messages": ["x"]}, "messages[0]"),
    ({"messages": [USER, {"content": "a"}]}, "messages[1].role"),
    ({"messages": [says("robot", "a")]}, "messages[0].role"),
    ({"messages": [says("user", None)]}, "messages[0].content"),
    ({"messages": [USER, says("assistant", None)]}, "messages[1].content"),
    ({"messages": [says("user", 5)]}, "messages[0].content"),
    ({"messages": [says("user", [part()] * 3)]}, "messages"),
    ({"messages": [says("user", [{"type": "text", "text": "a"}] * 6)]}, "messages[0].content"),
    ({"messages": [says("user", [{"type": "text", "text": "a"}] * 3)] * 2}, "messages"),
    ({"messages": [says("user", "x" * 150)] * 2}, "messages"),
    ({"messages": [says("user", ["a"])]}, "messages[0].content[0]"),
    ({"messages": [says("user", [{"type": "video_url"}])]}, "messages[0].content[0].type"),
    ({"messages": [says("user", [{"type": "text"}])]}, "messages[0].content[0].text"),
    ({"messages": [says("user", [{"type": "image_url"}])]}, "messages[0].content[0].image_url"),
    ({"messages": [says("user", [part("")])]}, "messages[0].content[0].image_url.url"),
    ({"messages": [USER, says("assistant", [part()])]}, "messages[1].content[0]"),
    ({"messages": [USER, says("assistant", None, tool_calls=[{}, {}])]}, "messages[1].tool_calls"),
    ({"messages": [USER, says("assistant", None, tool_calls=[{}])]}, "messages[1].tool_calls[0].function"),
    ({"messages": [USER, says("assistant", None, function_call={})]}, "messages[1].function_call.name"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"max_completion_tokens": 10**400}, "max_completion_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": "0"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": 10**9}, "n"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": "x" * 9}, "stop"),
    ({"stop": [5]}, "stop[0]"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {}}, "stream_options"),
    ({"logprobs": 5}, "logprobs"),
    ({"tools": [TOOL] * 3}, "tools"),
    ({"tools": [TOOL] * 2}, "tools"),
    ({"tools": {}, "functions": None, "stop": {}}, "stop"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "a\nb"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 1}}]}, "tools[0].function.parameters"),
    ({"tools": [TOOL], "functions": [{"name": "g"}]}, "functions"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
]


@pytest.mark.parametrize("fields, param", REFUSED, ids=[f"{n}-{param}" for n, (_, param) in enumerate(REFUSED)])
def test_a_refusal_names_the_parameter(fields, param):
    with pytest.raises(ApiError) as caught:
        parse(body(**fields), LIMITS)
    error = caught.value
    assert (error.status, error.param) == (400, param)
    assert error.body()["error"]["type"] == "invalid_request_error" and len(error.message) < 300
    json.dumps(error.body()).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"seed": 0},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -1},
        {"logit_bias": {"5": 1}},
        {"top_logprobs": 2},
        {"response_format": {"type": "json_object"}},
        {"min_p": 0.1},
        {"guided_json": {}},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"function_call": {"name": "f"}},
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_by_name(fields):
    with pytest.raises(ApiError) as caught:
        parse(body(**fields), LIMITS)
    assert (caught.value.status, caught.value.code) == (400, "unsupported_parameter")
    assert caught.value.param == next(iter(fields))


def test_a_strict_tool_and_an_impossible_order_are_refused():
    strict = {"type": "function", "function": {"name": "f", "strict": True}}
    with pytest.raises(ApiError) as caught:
        parse(body(tools=[strict]), LIMITS)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools[0].function.strict")
    for messages in ([says("system", "a")], [USER, says("tool", "a")]):
        with pytest.raises(ApiError) as caught:
            parse(body(messages=messages), LIMITS).conversation([])
        assert (caught.value.status, caught.value.param) == (400, "messages")


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": 1', "not JSON"),
        (b"[1]", "a list; send a JSON object"),
        (b'{"a": NaN}', "a number that cannot be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number that cannot be read"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested more than 64"),
        (rb'{"messages": [{"content": "\ud83d"}]}', "messages[0].content: holds half of a surrogate pair"),
        (rb'{"\udc00": 1}', "a key holds half"),
        (rb'{"a": [1, {"b": {"\udc00": 1}}]}', "a[1].b: a key holds half"),
        (b'{"metadata": [' + b"0," * 250_001 + b"0]}", "more than 250000 values"),
    ],
)
def test_a_body_that_is_no_json_object(content, message):
    with pytest.raises(ApiError) as caught:
        decode(content)
    assert caught.value.status == 400 and message in caught.value.message
    json.dumps(caught.value.body(), ensure_ascii=False).encode()


def test_a_whole_surrogate_pair_is_a_character():
    assert decode(rb'{"a": "\ud83d\udc31"}') == {"a": "🐱"}
