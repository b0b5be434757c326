"""A model behind an address: what it is asked, and when it cannot be asked."""

import base64

import pytest
from helpers.evaluations import png
from helpers.openai_server import completion, serving

from qwen_vl.evaluation.openai_protocol import Endpoint
from qwen_vl.evaluation.records import Decoding, ImageSource, Prompt, Ranking
from qwen_vl.evaluation.server import ServerModel

IMAGE = ImageSource.from_bytes("a", png("red"))
PROMPT = Prompt(("look: ", IMAGE, " what?"), "chat", "be brief", ((("earlier",), "yes"),))
TEN = Decoding(max_new_tokens=10)


def ask(model, prompts, decoding=TEN, **options):
    """Return {index: Said} of all prompts."""
    said = {}
    model.answer(prompts, decoding, batch_size=4, on_batch=said.update, **options)
    return said


def test_what_a_server_is_asked():
    def reply(path, body):
        return {"data": [{"id": "org/Qwen-VL"}]} if body is None else completion("\n Red ", finish_reason="length")

    with serving(reply) as (address, server):
        model = ServerModel.connect(Endpoint.at(address, "k"))
        said = ask(model, [PROMPT, Prompt(("hi",), "chat")])
    assert said[0] == said[1] and (said[0].text, said[0].finish, said[0].num_tokens) == ("Red", "length", 3)
    assert model.identity.label == "Qwen-VL" and model.identity.fingerprint == f"server:{address}/v1 org/Qwen-VL"
    assert server.requests[0] == ("/v1/models", None) and set(server.keys) == {"Bearer k"}
    bodies = {len(body["messages"]): body for _, body in server.requests[1:]}
    assert bodies[1]["messages"] == [{"role": "user", "content": "hi"}]
    assert {key: bodies[1][key] for key in bodies[1] if key != "messages"} == {
        "model": "org/Qwen-VL",
        "temperature": 0,
        "max_tokens": 10,
    }
    image = "data:image/png;base64," + base64.b64encode(png("red")).decode()
    assert bodies[4]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "earlier"},
        {"role": "assistant", "content": "yes"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look: "},
                {"type": "image_url", "image_url": {"url": image}},
                {"type": "text", "text": " what?"},
            ],
        },
    ]


def test_options_are_ranked_by_the_probabilities_of_their_letters():
    top = [{"token": " B", "logprob": -0.5}, {"token": "B", "logprob": -2}, {"token": "The", "logprob": -3.5}]
    logprobs = {"content": [{"token": "x", "logprob": -0.1, "top_logprobs": [*top, {"token": "A", "logprob": -1.5}]}]}
    prompt = Prompt(("which?",), "chat")
    with serving(lambda path, body: completion("B", logprobs=logprobs)) as (address, server):
        said = ask(ServerModel.connect(Endpoint.at(address), "m"), [prompt], Ranking(), option_counts=[3])
    assert said[0].losses == (1.5, 0.5, 3.5) and (said[0].choice, said[0].finish) == (1, "rank")
    assert {key: server.requests[0][1][key] for key in ("max_tokens", "logprobs", "top_logprobs")} == {
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }
    for without in ({"content": []}, None):
        with serving(lambda path, body, value=without: completion("B", logprobs=value)) as (address, _):
            model = ServerModel.connect(Endpoint.at(address), "m")
            with pytest.raises(ValueError, match=r"no log probabilities of the option letters.*--generate"):
                ask(model, [prompt], Ranking(), option_counts=[3])


def test_what_a_server_cannot_be_asked():
    with serving(lambda path, body: {"data": [{"id": "a"}, {"id": "b"}]}) as (address, server):
        with pytest.raises(ValueError, match="has the models a, b; name one: --server_model"):
            ServerModel.connect(Endpoint.at(address))
        model = ServerModel.connect(Endpoint.at(address), "b", label="mine")
        assert model.identity.label == "mine"
        with pytest.raises(ValueError, match=r"raw texts.*--style chat"):
            ask(model, [Prompt(("hi",), "raw")])
        assert len(server.requests) == 1
        broken = Prompt((ImageSource.from_bytes("bad.png", b"no image"), "?"), "chat")
        said = ask(model, [broken])
        assert said[0].finish == "error" and "bad.png" in said[0].error and len(server.requests) == 1


def test_a_server_that_fails_ends_it_and_keeps_what_it_answered():
    replies = [completion("one"), completion("two"), (400, "too long")]
    with serving(lambda path, body: replies.pop(0) if replies else (400, "no")) as (address, server):
        said, model = {}, ServerModel.connect(Endpoint.at(address), "m")
        prompts = [Prompt((f"{number}",), "chat") for number in range(9)]
        with pytest.raises(OSError, match=r"answers 400 Bad Request \(too long\)"):
            model.answer(prompts, TEN, batch_size=1, on_batch=said.update)
        assert {index: words.text for index, words in said.items()} == {0: "one", 1: "two"}
        assert len(server.requests) == 3
