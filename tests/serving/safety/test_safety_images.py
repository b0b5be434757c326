"""Images of requests: what is not read, through a running server.

Each attack gets one clear error in OpenAI's form, nothing is read, and the server answers the next request.
"""

import io
import time
from collections import Counter

import numpy as np
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
    SETTINGS,
    WHERE,
    answers,
    asking,
    check_refused,
    data_url,
    no_private_host,
    serving,
    to,
)
from helpers.images import encoded, noise
from helpers.media_server import PUBLIC
from helpers.serving import refused, send
from PIL import Image

from qwen_vl.serving.api.original import OriginalRoute
from qwen_vl.serving.media import MediaPolicy, MediaReader


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


@pytest.mark.parametrize(
    "options, source, reason",
    [
        ({"media_urls": "off"}, "http://images.example/good.png", "urls_off"),
        ({"allowed_domains": ("*.example.org",)}, "http://images.example/good.png", "domain"),
        ({"allowed_domains": ("images.example",)}, to("http://other.example/good.png"), "domain"),
        ({}, "/etc/passwd", "files_off"),
        ({}, "file:///etc/passwd", "files_off"),
    ],
)
def test_a_policy_narrows_what_is_read(engine, host, web, options, source, reason):
    reader = MediaReader(MediaPolicy(**options), resolve=web.resolve, connect=web.connect)
    with serving(engine, SETTINGS, reader) as server:
        check_refused(server, source, reason)
    no_private_host(host, web)


def test_texts_of_openai_api_are_under_the_same_rules(engine, reader, host, web, folder):
    """Check the addresses that its users write into texts."""
    sources = [f"http://{name}/good.png" for name in EVERY_KIND] + [
        to(f"http://{name}/good.png") for name in EVERY_KIND
    ]
    sources += [*PORTS, *SCHEMES, *(path.format(folder) for path in PATHS if "\0" not in path)]
    with serving(engine, SETTINGS, reader, route=OriginalRoute) as server:
        for source in sources:
            content = f"Picture 1: <img>{source}</img>\nWhat is it?"
            answer = send(server, CHAT, {"model": "any", "messages": [{"role": "user", "content": content}]})
            assert refused(answer)[:2] == (400, "invalid_image"), source
            assert b"secret" not in answer[2] and b"passwd" not in answer[2]
        content = f"Picture 1: <img>{folder}/a.png</img>\nWhat is it?"
        assert send(server, CHAT, {"model": "any", "messages": [{"role": "user", "content": content}]})[0] == 200
    no_private_host(host, web)


@pytest.mark.slow
def test_every_host_in_every_way(server, host, web):
    """Check each host directly and behind redirects and names, with both schemes."""
    count = 0
    for name in HOSTS + NUMBERS:
        for scheme in ("http", "https"):
            address = f"{scheme}://{name}/good.png"
            for source in [address] + [to(address), to(to(address))] * name.isascii():
                check_refused(server, source, "address")
                count += 1
        for around in ([], [PUBLIC], ["2606:4700::1111", PUBLIC]):
            web.names["inside.example"] = [*around, name.strip("[]")]
            for source in ("http://inside.example/good.png", to("https://inside.example/good.png")):
                check_refused(server, source, "address")
                count += 1
    no_private_host(host, web)
    assert count > 400


@pytest.mark.slow
def test_damaged_images_of_every_kind(server):
    """Check that 360 cut and 600 changed files give an answer or an error in OpenAI's form, never a failure."""
    random, statuses = np.random.default_rng(0), Counter()
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        content = encoded(noise(30, 20), kind)
        files = [content[: int(length)] for length in np.linspace(1, len(content) * 0.95, 60)]
        for _ in range(100):
            changed = bytearray(content)
            for place in random.integers(0, len(content), 4):
                changed[place] = random.integers(0, 256)
            files.append(bytes(changed))
        for file in files:
            answer = send(server, CHAT, asking(data_url(file)))
            statuses[answer[0]] += 1
            if answer[0] != 200:
                assert refused(answer) == (400, "invalid_image", WHERE)
        answers(server)
    assert statuses.total() == 960 and statuses[200] > 100 and statuses[400] > 360, statuses
