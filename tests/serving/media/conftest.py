"""The made-up web of the media tests: a server on loopback behind a fake resolver."""

import pytest
from helpers.media_server import Web, media_server


@pytest.fixture(scope="module")
def server():
    with media_server() as running:
        yield running


@pytest.fixture
def web(server):
    server.requests.clear()
    return Web(server.server_port)
