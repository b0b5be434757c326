"""Bodies as clients write them, recorded or from their sources: each gets an answer to what it asked."""

import json

import pytest
from helpers.serving import ScriptedEngine, running_server, send
from PIL import Image

from qwen_vl.serving.client import image_url
from qwen_vl.serving.engine import load

PIXEL = image_url(Image.new("RGB", (1, 1), "red"))
IMAGE = {"type": "image_url", "image_url": {"url": PIXEL}}
TEXT = {"type": "text", "text": "What is it?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ADD = {
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "type": "object",
    },
}
ADD_CALL = {"name": "add", "arguments": '{"a": 1, "b": 1}'}
SPAN = "<img></img>"  # of 16 tokens, as the tokenizer writes it

# (client, body, what the model reads between the default system turn, or the one given, and the answer)
RECORDED = [
    (
        "langchain-openai 1.7: ChatOpenAI with an image",
        {"messages": [SYSTEM, {"content": [TEXT, IMAGE], "role": "user"}], "max_completion_tokens": 8, "stream": False},
        f"system\nBe brief.|user\nWhat is it?Picture 1: {SPAN}\n|",
    ),
    (
        "langchain-openai 1.7: a tool",
        {"messages": [{"content": "1+1?", "role": "user"}], "tools": [{"type": "function", "function": ADD}]},
        None,
    ),
    (
        "langchain-openai 1.7: the result of a tool",
        {
            "messages": [
                {"content": "1+1?", "role": "user"},
                {
                    "content": None,
                    "role": "assistant",
                    "tool_calls": [{"type": "function", "id": "call_1", "function": ADD_CALL}],
                },
                {"content": "2", "role": "tool", "tool_call_id": "call_1"},
            ],
            "tools": [{"type": "function", "function": ADD}],
            "stream": True,
        },
        None,
    ),
    (
        "llama-index 0.14: OpenAILike with an ImageBlock",
        {"messages": [{"role": "user", "content": [TEXT, IMAGE]}], "stream": False, "temperature": 0.0},
        f"system\nYou are a helpful assistant.|user\nWhat is it?Picture 1: {SPAN}\n|",
    ),
    (
        "llama-index 0.14: a stream",
        {"messages": [SYSTEM, {"role": "user", "content": "Hello"}], "stream": True, "temperature": 0.0},
        "system\nBe brief.|user\nHello|",
    ),
    (
        "open-webui: a turn after an image",
        {
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [
                SYSTEM,
                {"role": "user", "content": [TEXT, {**IMAGE, "image_url": {"url": PIXEL, "detail": "auto"}}]},
                {"role": "assistant", "content": "A pixel."},
                {"role": "user", "content": "Of which color?"},
            ],
            "temperature": 0.8,
            "max_tokens": 128,
            "user": {"name": "A", "id": "1", "role": "admin"},
        },
        f"system\nBe brief.|user\nWhat is it?Picture 1: {SPAN}\n|assistant\nA pixel.|user\nOf which color?|",
    ),
    (
        "open-webui: a title",
        {
            "messages": [{"role": "user", "content": "### Task:\nWrite a title."}],
            "stream": False,
            "max_completion_tokens": 100,
        },
        "system\nYou are a helpful assistant.|user\n### Task:\nWrite a title.|",
    ),
    (
        "the openai client of JavaScript, every harmless field",
        {
            "messages": [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}]
            + [{"role": "user", "content": "Hello", "name": "Ann"}],
            **{"store": False, "service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s"},
            **{"verbosity": "low", "metadata": {"a": "b"}, "user": "u", "reasoning_effort": "low"},
            **{"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": None, "seed": None, "top_logprobs": None},
            **{"n": 1, "logprobs": None, "tools": None, "stop": None, "response_format": {"type": "text"}},
            **{"parallel_tool_calls": True, "modalities": ["text"]},
        },
        "system\nBe brief.|user\nHello|",
    ),
]


@pytest.fixture(scope="module")
def server(make_checkpoint):
    engine = ScriptedEngine(
        *load(make_checkpoint(), device="cpu"), lambda request: ["I know.\nFinal Answer: 好", "的."]
    )
    with running_server(engine) as server:
        yield server


@pytest.mark.parametrize("client, body, expected", RECORDED, ids=[client for client, _, _ in RECORDED])
def test_a_recorded_request_gets_its_answer(server, client, body, expected):
    status, _, content = send(server, "/v1/chat/completions", {"model": "tiny", **body})
    assert status == 200, content
    if body.get("stream"):
        *events, done = [line[6:] for line in content.decode().split("\n\n") if line]
        chunks = [json.loads(event) for event in events]
        answer = "".join(one["delta"].get("content", "") for chunk in chunks for one in chunk["choices"])
        assert done == "[DONE]" and ("usage" in chunks[-1]) == ("stream_options" in body)
    else:
        answer = json.loads(content)["choices"][0]["message"]["content"]
    assert answer == ("好的." if body.get("tools") else "I know.\nFinal Answer: 好的.")
    prompt = server.engine.tokenizer.decode(server.engine.requests[-1].prompt.ids)
    if expected is not None:
        turns = expected.replace("|", "<|im_end|>\n<|im_start|>")
        assert prompt == f"<|im_start|>{turns}assistant\n"
    elif len(body["messages"]) > 1:
        assert prompt.endswith('Action: add\nAction Input: {"a": 1, "b": 1}\nObservation: 2\nThought:')
    else:
        assert "add: Call this tool to interact with the add API." in prompt and "Question: 1+1?" in prompt
