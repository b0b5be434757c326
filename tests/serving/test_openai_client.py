"""The `openai` client against a running server of a real tiny model."""

import pytest
from helpers.serving import running_server, tiny_engine


@pytest.fixture(scope="module")
def server(make_checkpoint):
    with tiny_engine(make_checkpoint()) as engine, running_server(engine) as server:
        yield server


def test_plain(server):
    reply = server.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello"}], temperature=0
    )
    print(reply)
    assert reply.choices[0].message.role == "assistant"
    stream = server.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello"}], temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == reply.choices[0].message.content
