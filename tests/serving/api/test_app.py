"""The app under uvicorn: its routes, its errors in OpenAI's form, and whom it answers."""

import gzip
import json

import pytest
from helpers.serving import ScriptedEngine, refused, running_server, send
from prometheus_client.parser import text_string_to_metric_families

from qwen_vl.serving.api import metrics
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.engine import EngineStats, load
from qwen_vl.serving.protocol.request import Limits

CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
KEY = "a-long-random-key"


@pytest.fixture(scope="module")
def engine(make_checkpoint):
    return ScriptedEngine(*load(make_checkpoint(), device="cpu"), lambda request: ["Hi"], names=("tiny", "org/tuned"))


@pytest.fixture(scope="module")
def server(engine):
    settings = ServerSettings(max_body_bytes=10_000)
    with running_server(engine, settings, limits=Limits(max_images=2, max_n=2)) as server:
        yield server


def hello(**fields):
    return {**HELLO, **fields}


def parts(*items):
    return hello(messages=[{"role": "user", "content": [*items]}])


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TEXT = {"type": "text", "text": "?"}


@pytest.mark.parametrize(
    "body, status, code, param",
    [
        (hello(seed=1), 400, "unsupported_parameter", "seed"),
        (hello(frequency_penalty=0.5), 400, "unsupported_parameter", "frequency_penalty"),
        (hello(presence_penalty=0.5), 400, "unsupported_parameter", "presence_penalty"),
        (hello(logit_bias={"5": 1}), 400, "unsupported_parameter", "logit_bias"),
        (hello(logprobs=True, top_logprobs=2), 400, "unsupported_parameter", "top_logprobs"),
        (hello(response_format={"type": "json_object"}), 400, "unsupported_parameter", "response_format"),
        (hello(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required"),)
        + (400, "unsupported_parameter", "tool_choice"),
        (hello(temperature=3), 400, None, "temperature"),
        (hello(n=3), 400, None, "n"),
        (hello(n=10**9), 400, None, "n"),
        (hello(max_tokens=0), 400, None, "max_tokens"),
        (hello(stop=["a"] * 5), 400, "limit_exceeded", "stop"),
        (hello(messages=[]), 400, None, "messages"),
        (hello(messages=[{"role": "robot", "content": ""}]), 400, None, "messages[0].role"),
        (hello(model="gpt-4o"), 404, "model_not_found", "model"),
        ({"model": "tiny"}, 400, None, "messages"),
        (parts(IMAGE, TEXT), 400, "invalid_image", "messages[0].content[0]"),
        (parts(IMAGE, IMAGE, IMAGE), 400, "limit_exceeded", "messages"),
        (parts({"type": "input_audio", "input_audio": {}}), 400, None, "messages[0].content[0].type"),
        (b'{"model": "tiny", "messages": [', 400, "invalid_json", None),
        (b"[1]", 400, "invalid_json", None),
        (b'{"a": "\xff"}', 400, "invalid_json", None),
        (b'{"a": "\\ud800"}', 400, None, "a"),
        (b" " * 10_001, 413, "request_too_large", None),
    ],
)
def test_errors_name_what_is_wrong(server, body, status, code, param):
    assert refused(send(server, CHAT, body)) == (status, code, param)
    assert send(server, CHAT, HELLO)[0] == 200


def test_errors_of_routes_methods_and_types(server):
    assert refused(send(server, "/v1/embeddings", {})) == (404, "not_found", None)
    assert refused(send(server, CHAT)) == (405, "method_not_allowed", None)
    assert refused(send(server, "/v1/models", {})) == (405, "method_not_allowed", None)
    assert refused(send(server, "/v1/models/none/")) == (404, "model_not_found", "model")
    for path, content, said in [
        (
            "/v1/completions",
            HELLO,
            "no route '/v1/completions'; there are POST /v1/chat/completions, and GET /v1/models",
        ),
        (CHAT, None, "does not take GET; use POST"),
        (CHAT, {"messages": []}, "model: is missing; give one of GET /v1/models"),
    ]:
        assert said in json.loads(send(server, path, content)[2])["error"]["message"]
    packed = send(server, CHAT, gzip.compress(json.dumps(HELLO).encode()), {"Content-Encoding": "gzip"})
    assert refused(packed) == (415, "unsupported_media_type", None) and b"without Content-Encoding" in packed[2]
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):  # of forms on other pages
        assert refused(send(server, CHAT, HELLO, {"Content-Type": kind})) == (415, "unsupported_media_type", None)
    assert refused(send(server, "/docs"))[0] == refused(send(server, "/openapi.json"))[0] == 404


def test_a_bug_tells_nothing(server, monkeypatch):
    monkeypatch.setattr(server.engine, "script", lambda request: KeyError("/a/secret"))
    status, headers, content = send(server, CHAT, HELLO)
    assert refused((status, headers, content)) == (500, None, None) and b"secret" not in content


def test_models_and_version(server):
    listed = json.loads(send(server, "/v1/models")[2])
    assert listed["object"] == "list" and [card["id"] for card in listed["data"]] == ["tiny", "org/tuned"]
    assert json.loads(send(server, "/v1/models/org/tuned")[2]) == listed["data"][1]
    assert (listed["data"][1]["parent"], listed["data"][1]["root"]) == ("tiny", "/org/tuned")
    assert json.loads(send(server, "/version")[2])["version"]


def test_health_says_whether_the_engine_can_answer(server, monkeypatch):
    assert send(server, "/health")[0] == send(server, "/health", method="HEAD")[0] == 200
    monkeypatch.setattr(server.engine, "alive", False)
    assert refused(send(server, "/health")) == (503, "unavailable", None)
    monkeypatch.setattr(server.engine, "alive", True)
    assert send(server, "/health")[0] == 200


def numbers(server):
    """Return {(name, values of the labels): value} of the metrics."""
    status, headers, content = send(server, "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=")
    samples = [one for family in text_string_to_metric_families(content.decode()) for one in family.samples]
    return {(one.name, frozenset(one.labels.values())): one.value for one in samples}


def test_metrics(server):
    before = numbers(server)
    send(server, CHAT, hello(n=2))
    send(server, CHAT, hello(stream=True))
    send(server, CHAT, parts(IMAGE))
    send(server, "/no/route")
    send(server, CHAT, method="BREW")
    after = numbers(server)

    def grown(name, *labels):
        return after[name, frozenset(labels)] - before.get((name, frozenset(labels)), 0)

    assert grown("qwen_vl_http_requests_total", "200", CHAT, "POST") == 2
    assert grown("qwen_vl_http_requests_total", "400", CHAT, "POST") == 1
    assert grown("qwen_vl_http_requests_total", "404", "GET", "other") == 1
    assert grown("qwen_vl_http_requests_total", "405", CHAT, "other") == 1
    assert grown("qwen_vl_choices_finished_total", "stop", "tiny") == 3
    assert grown("qwen_vl_generated_tokens_total", "tiny") == 3 * len(server.engine.tokenizer.encode("Hi"))
    assert grown("qwen_vl_prompt_tokens_total", "tiny") > 20
    assert grown("qwen_vl_images_refused_total", "format") == 1
    assert grown("qwen_vl_request_seconds_count") == grown("qwen_vl_time_to_first_token_seconds_count") == 2
    assert metrics.STATS.keys() == set(EngineStats._fields)
    assert {f"qwen_vl_engine_{name}_total" for name in metrics.TOTALS} < {name for name, _ in after}
    assert after["qwen_vl_engine_alive", frozenset()] == 1 and after["qwen_vl_engine_running", frozenset()] == 0


def test_keys_and_origins(engine):
    settings = ServerSettings(api_keys=(KEY,), allowed_origins=("https://page.example",))
    with running_server(engine, settings) as server:
        bearer = {"Authorization": f"Bearer {KEY}"}
        assert refused(send(server, CHAT, HELLO)) == (401, "invalid_api_key", None)
        for path in ("/metrics", "/version", "/v1/models", "/no/route"):
            assert refused(send(server, path, headers={"Authorization": "Bearer wrong"}))[0] == 401
        assert send(server, "/health")[0] == 200
        assert server.client(KEY).chat.completions.create(**HELLO).choices[0].message.content == "Hi"
        ours, others = (
            {"Origin": page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
            for page in ("https://page.example", "https://evil.example")
        )
        status, headers, _ = send(server, CHAT, headers=ours, method="OPTIONS")
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://page.example")
        assert "authorization" in headers["Access-Control-Allow-Headers"].lower()
        assert "Access-Control-Allow-Credentials" not in headers
        status, headers, _ = send(server, CHAT, headers=others, method="OPTIONS")
        assert status == 400 and "Access-Control-Allow-Origin" not in headers
        _, headers, _ = send(server, CHAT, HELLO, {**bearer, "Origin": "https://page.example"})
        assert headers["Access-Control-Allow-Origin"] == "https://page.example"
        assert "Access-Control-Allow-Origin" not in send(server, CHAT, HELLO, {**bearer, **others})[1]
    with running_server(engine, ServerSettings(allowed_origins=("*",))) as server:
        headers = send(server, CHAT, HELLO, {"Origin": "https://any.example"})[1]
        assert headers["Access-Control-Allow-Origin"] == "*" and "Access-Control-Allow-Credentials" not in headers


def test_other_pages_and_hosts_get_nothing(server):
    headers = send(server, CHAT, HELLO, {"Origin": "https://page.example"})[1]
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert refused(send(server, "/health", headers={"Host": "evil.example"})) == (403, "invalid_host", None)


def test_keys_do_not_share_work(engine):
    engine.requests.clear()
    with running_server(engine, ServerSettings(api_keys=(KEY, KEY[::-1]))) as server:
        for key in (KEY, KEY[::-1], KEY):
            server.client(key).chat.completions.create(**HELLO)
    first, other, again = (request.sharing_key for request in engine.requests)
    assert first == again != other and KEY not in first
