"""Images of requests: what is not read, through a running server.

Each attack gets one clear error in OpenAI's form, nothing is read, and the server answers the next request.
"""

import io
import time

import pytest
from helpers.attacks import (
    BODIES,
    BOMBS,
    CHAT,
    EVERY_KIND,
    HOSTS,
    MALFORMED,
    NUMBERS,
    OTHERS,
    PATHS,
    PORTS,
    SCHEMES,
    SECONDS,
    asking,
    check_refused,
    data_url,
    no_private_host,
    to,
)
from helpers.images import encoded, noise
from helpers.media_server import PUBLIC
from helpers.serving import send
from PIL import Image


@pytest.mark.parametrize("name", HOSTS + NUMBERS)
def test_hosts_that_are_not_public(server, host, web, name):
    check_refused(server, f"http://{name}/good.png", "address")
    assert not web.connected and not web.asked
    if name in HOSTS:  # a name that resolves to it, alone or beside a public address
        for around in ([], [PUBLIC]):
            web.names["inside.example"] = [*around, name.strip("[]")]
            check_refused(server, "http://inside.example/good.png", "address")
        assert not web.connected


@pytest.mark.parametrize("name", EVERY_KIND)
def test_redirects_to_hosts_that_are_not_public(server, host, web, name):
    check_refused(server, to(f"http://{name}/good.png"), "address")
    web.names["inside.example"] = ["127.0.0.1" if name in NUMBERS else name.strip("[]")]
    check_refused(server, to(to("http://inside.example/good.png")), "address")
    no_private_host(host, web)


def test_rebinding(server, host, web):
    """Check that a name that is public at first and private at the next look is not read the second time."""
    web.names["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    check_refused(server, "http://rebind.example/to?url=http%3A%2F%2Frebind.example%2Fgood.png", "address")
    no_private_host(host, web)
    assert web.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize("source", MALFORMED)
def test_addresses_that_two_parsers_read_differently(server, host, web, source):
    check_refused(server, source, "url")
    assert not web.connected and not web.asked
    if "@" in source:
        check_refused(server, to(source), "url")
        no_private_host(host, web)


@pytest.mark.parametrize("source, reason", [(one, "port") for one in PORTS] + [(one, "source") for one in SCHEMES])
def test_ports_and_schemes(server, web, source, reason):
    check_refused(server, source, reason)
    assert not web.connected


@pytest.mark.parametrize("reason, path", [(reason, path) for reason, paths in BODIES.items() for path in paths])
def test_bodies_that_do_not_arrive(server, reason, path):
    start = time.monotonic()
    check_refused(server, f"http://images.example/{path}", reason)
    assert time.monotonic() - start < SECONDS + 3


def test_images_that_may_be_read(server, web, folder):
    """Check that the rules leave something: a public host, a redirect to one, a file of the folder."""
    for source in ("http://images.example/good.png", to("http://other.example/good.png"), f"file://{folder}/a.png"):
        status, _, content = send(server, CHAT, asking(source))
        assert status == 200, content


@pytest.mark.parametrize("path", PATHS)
def test_paths_out_of_the_folder(server, folder, path):
    """Check that missing, forbidden and outside are one error, which shows no path."""
    check_refused(server, path.format(folder), "file")


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_cut_images(server, name):
    check_refused(server, data_url(BOMBS[name][0]), BOMBS[name][1])


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_no_images(server, name):
    check_refused(server, data_url(OTHERS[name]), "format")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_images_of_one_pixel(server, kind):
    for size in ((1, 1), (1, 500)):
        status, _, content = send(server, CHAT, asking(data_url(encoded(Image.new("RGB", size), kind))))
        assert status == 200, content


Image.init()
MODES = {"PALM": "P", "BLP": "P", "XBM": "1", "MSP": "1"}  # those that write no RGB
FORMATS = sorted(set(Image.SAVE) - {"BUFR", "GRIB", "HDF5", "WMF"})  # these only with a library that is not there
READ = {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO"}  # the last is JPEG with more images behind


def test_every_format_that_pillow_writes(server):
    assert len(FORMATS) + len(OTHERS) >= 40
    for kind in FORMATS:
        stream = io.BytesIO()
        noise(40, 24).convert(MODES.get(kind, "RGB")).save(stream, kind)
        if kind in READ:
            status, _, content = send(server, CHAT, asking(data_url(stream.getvalue())))
            assert status == 200, (kind, content)
        else:
            check_refused(server, data_url(stream.getvalue()), "format")
