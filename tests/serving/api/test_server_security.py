"""Who may ask a server: addresses, Host headers, keys, bounded bodies; each refusal in OpenAI's form."""

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.testclient import TestClient

from qwen_vl.serving.api.body import read_json
from qwen_vl.serving.api.errors import answer_errors
from qwen_vl.serving.api.security import HostCheck, KeyCheck
from qwen_vl.serving.api.settings import ServerSettings

KEY = "a-long-random-key"


@pytest.fixture
def client():
    """Return a client of an app with the checks and one route, which returns the body that it read."""
    settings = ServerSettings(api_keys=(KEY, "another-long-key"))
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    answer_errors(app)

    @app.post("/echo")
    async def echo(request: Request):
        return await read_json(request, max_bytes=100, seconds=5)

    @app.get("/bug")
    async def bug():
        raise RuntimeError("a secret")

    @app.get("/health")
    async def health():
        return {}

    app.add_middleware(KeyCheck, settings=settings)
    app.add_middleware(HostCheck, settings=settings)
    return TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False)


def error_of(response):
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return response.status_code, body["error"]["code"]


@pytest.mark.parametrize("header", [None, "Bearer wrong-key", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer", "Bearer é"])
def test_a_wrong_key_is_refused_everywhere_but_at_health(client, header):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    assert error_of(client.post("/echo", json={}, headers=headers)) == (401, "invalid_api_key")
    assert error_of(client.get("/no-route", headers=headers)) == (401, "invalid_api_key")
    assert client.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "host, status",
    [
        *[("localhost:8000", 200), ("[::1]:8000", 200), ("192.0.2.1", 200)],
        *[("evil.example:8000", 403), ("127.0.0.1.evil.example", 403), ("127.0.0.1@evil", 403), ("", 403)],
    ],
)
def test_a_host_header_names_this_server(client, host, status):
    assert client.get("/health", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    "content, kind, expected",
    [
        (b'{"a": "' + b"x" * 100 + b'"}', "application/json", (413, "request_too_large")),
        (b"{}", "text/plain", (415, "unsupported_media_type")),
        (b'{"a": "\xff"}', "application/json", (400, "invalid_json")),
        (b'{"a": NaN}', "application/json", (400, "invalid_json")),
        (b"[" * 90, "application/json", (400, "invalid_json")),
    ],
)
def test_a_body_is_bounded_json(client, content, kind, expected):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": kind}
    assert error_of(client.post("/echo", content=content, headers=headers)) == expected
    stream = iter([content[:50], content[50:]])  # without a Content-Length
    assert error_of(client.post("/echo", content=stream, headers=headers)) == expected
    assert client.post("/echo", json={"a": 1}, headers=headers | {"Content-Type": "application/json"}).json() == {
        "a": 1
    }


def test_errors_of_the_router_and_bugs_have_the_same_form(client):
    client.headers["Authorization"] = "Bearer another-long-key"
    assert error_of(client.get("/none")) == (404, "not_found")
    assert error_of(client.get("/echo")) == (405, "method_not_allowed")
    response = client.get("/bug")
    assert error_of(response) == (500, None) and "secret" not in response.text


def test_other_machines_need_a_key():
    with pytest.raises(ValueError, match=r"0\.0\.0\.0.*--api_key"):
        ServerSettings(host="0.0.0.0")
    with pytest.raises(ValueError, match="--insecure"):
        ServerSettings(host="example.org")
    with pytest.raises(ValueError, match="8 characters"):
        ServerSettings(api_keys=("short",))
    assert ServerSettings(host="::1") and ServerSettings(host="0.0.0.0", insecure=True)
    assert ServerSettings(host="0.0.0.0", api_keys=(KEY,))
