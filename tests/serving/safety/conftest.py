"""A running server of a real tiny model, between a folder of images and a web that is made up."""

import os

import pytest
from helpers.attacks import POLICY, SECONDS, SETTINGS, serving
from helpers.images import encoded
from helpers.media_server import PUBLIC, Web, media_server
from helpers.serving import tiny_engine

from qwen_vl.serving.api import body
from qwen_vl.serving.media import MediaPolicy, MediaReader


@pytest.fixture(scope="package")
def host():
    with media_server() as running:
        yield running


@pytest.fixture(scope="package")
def web(host):
    return Web(host.server_port)


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """Return a folder of images that requests may read, with links, next to a folder with a secret."""
    root = tmp_path_factory.mktemp("files")
    (root / "images").mkdir()
    (root / "images-secret").mkdir()
    for name in ("images/a.png", "images-secret/s.png"):
        (root / name).write_bytes(encoded())
    (root / "images" / "outside").symlink_to("../images-secret/s.png")
    (root / "images" / "folder").symlink_to("../images-secret")
    os.mkfifo(root / "images" / "pipe")
    return root / "images"


@pytest.fixture(scope="package")
def reader(web, folder):
    return MediaReader(MediaPolicy(allowed_local_dir=folder, **POLICY), resolve=web.resolve, connect=web.connect)


@pytest.fixture(scope="package")
def engine(make_checkpoint):
    with tiny_engine(make_checkpoint()) as engine:
        yield engine


@pytest.fixture(scope="package")
def server(engine, reader):
    with pytest.MonkeyPatch.context() as patch, serving(engine, SETTINGS, reader) as server:
        patch.setattr(body, "DISCARD_SECONDS", SECONDS)
        yield server


@pytest.fixture(autouse=True)
def quiet(host, web):
    """Begin each test with a web that was never asked."""
    host.requests.clear()
    web.asked.clear()
    web.connected.clear()
    web.names = {"images.example": [PUBLIC], "other.example": ["1.1.1.1"]}
