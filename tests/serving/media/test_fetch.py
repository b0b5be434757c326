"""Downloads for requests: what is connected to, what is sent, and limits of time and size."""

import shutil
import socket
import ssl
import subprocess
import time
from urllib.parse import quote

import pytest
from helpers.images import encoded
from helpers.media_server import PUBLIC, Web, media_server

from qwen_vl.serving.media import MediaError, MediaPolicy
from qwen_vl.serving.media.fetch import Network, connect_to, download, resolve_name


def fetch(web, url, *, tls=None, **policy):
    """Return what a download gives, in a world in which `web` is the network."""
    policy = MediaPolicy(**{"seconds": 5.0, "max_bytes": 100_000, **policy})
    return download(url, policy, Network(web.resolve, web.connect, tls or ssl.create_default_context()))


def reason_of(web, url, **policy):
    with pytest.raises(MediaError) as caught:
        fetch(web, url, **policy)
    return caught.value.reason


def too_slow(address, port, timeout):
    time.sleep(timeout)
    raise TimeoutError


def to(url, host="images.example"):
    return f"http://{host}/to?url={quote(url, safe='')}"


@pytest.mark.parametrize("path", ["good.png", "unmeasured", "chunked", "modest", "negative", "cookie", "count?n=5"])
def test_bodies_arrive_whole(web, path):
    assert fetch(web, f"http://images.example/{path}") == encoded()
    assert set(web.connected) == {(PUBLIC, 80)}


def test_what_is_sent(server, web, monkeypatch):
    """Check that proxies of the environment are not used, and that no cookie and nothing of this machine is sent."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(web, "http://images.example:443/cookie?a=%20b") == encoded()
    first, second = server.requests
    assert first[:2] == ("images.example:443", "/cookie?a=%20b") and second[:2] == ("images.example:443", "/good.png")
    headers = {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}
    assert set(first[2]) == set(second[2]) == headers
    assert web.connected == [(PUBLIC, 443)] * 2


PRIVATE = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "fd00::1", "0.0.0.0"]
PRIVATE += ["2002:7f00:1::", "fe80::1%lo", "224.0.0.1", "192.0.0.192", "168.63.129.16", "nonsense"]


@pytest.mark.parametrize("address", PRIVATE)
@pytest.mark.parametrize("around", [[], [PUBLIC]])
def test_a_name_with_an_address_that_is_not_public(server, web, address, around):
    """Check that every address of a name counts, also as the target of a redirect."""
    web.names["inside.example"] = [*around, address]
    assert reason_of(web, "http://inside.example/good.png") == "address"
    assert not web.connected
    assert reason_of(web, to("http://inside.example/good.png")) == "address"
    assert web.connected == [(PUBLIC, 80)] and len(server.requests) == 1


HOSTS = ["127.0.0.1", "[::1]", "169.254.169.254", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "2130706433", "0x7f.1"]
HOSTS += ["127.1", "10.0.0.1", "0", "１２７.０.０.１", "127.0.0.1.", "unknown.example", "[fd00:ec2::254]"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_is_not_public(server, web, host, scheme):
    """Check that an unknown host gives the same error as a private one, at once or after a redirect."""
    assert reason_of(web, f"{scheme}://{host}/good.png") == "address"
    assert not web.connected and set(web.asked) <= {"unknown.example"}
    if host.isascii():  # a header is
        assert reason_of(web, to(f"{scheme}://{host}/good.png")) == "address"
        assert web.connected == [(PUBLIC, 80)] and len(server.requests) == 1


@pytest.mark.parametrize(
    "target, reason",
    [
        ("file:///etc/passwd", "url"),
        ("ftp://images.example/a", "url"),
        ("gopher://127.0.0.1:70/a", "url"),
        ("data:image/png;base64,AAAA", "url"),
        ("//127.0.0.1/good.png", "address"),
        ("http://images.example:22/good.png", "port"),
        ("http://user:word@images.example/good.png", "url"),
        ("http://other.example\\@127.0.0.1/", "url"),
        ("\\\\127.0.0.1\\good.png", "url"),
        ("http://images.example/a b", "url"),
        ("http://\t127.0.0.1/", "url"),
        (to("http://127.0.0.1/good.png"), "address"),
        (to(to("http://localhost/good.png"), "other.example"), "address"),
    ],
)
def test_redirects_are_checked_like_addresses(server, web, target, reason):
    web.names["localhost"] = ["127.0.0.1"]
    assert reason_of(web, to(target)) == reason
    assert not [address for address, _ in web.connected if address not in (PUBLIC, "1.1.1.1")]
    assert all("good" not in path.partition("?")[0] for _, path, _ in server.requests)


def test_at_most_five_redirects(server, web):
    assert reason_of(web, "http://images.example/count?n=6") == "redirects"
    assert reason_of(web, "http://images.example/loop") == "redirects"
    assert len(server.requests) == 12
    assert reason_of(web, "http://images.example/nowhere") == "status"


def test_rebinding(web):
    """Check that a name is resolved once for a connection, and again, with the check, for a redirect to itself."""
    web.names["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetch(web, "http://rebind.example/good.png") == encoded()
    assert web.asked == ["rebind.example"] and web.connected == [(PUBLIC, 80)]
    web.names["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert reason_of(web, "http://rebind.example/count?n=3") == "address"
    assert web.connected == [(PUBLIC, 80)] * 2


def test_private_hosts_are_for_those_who_ask(web):
    web.names["inside.example"] = ["10.0.0.1"]
    assert fetch(web, "http://inside.example/good.png", media_urls="any") == encoded()
    assert fetch(web, "http://127.0.0.1/good.png", media_urls="any") == encoded()
    assert reason_of(web, "http://127.0.0.1:8080/good.png", media_urls="any") == "port"
    assert fetch(web, "http://127.0.0.1:8080/good.png", media_urls="any", ports=(8080,)) == encoded()


def test_domains_narrow_what_is_read(web):
    policy = {"allowed_domains": ("images.example",)}
    assert fetch(web, "http://images.example/good.png", **policy) == encoded()
    web.asked.clear()
    assert reason_of(web, "http://other.example/good.png", **policy) == "domain"
    assert reason_of(web, "http://1.1.1.1/good.png", **policy) == "domain"
    assert not web.asked
    assert reason_of(web, to("http://other.example/good.png"), **policy) == "domain"
    web.names["images.example"] = ["127.0.0.1"]
    assert reason_of(web, "http://images.example/good.png", **policy) == "address"


@pytest.mark.parametrize(
    "path, reason",
    [
        ("endless", "bytes"),
        ("announced", "bytes"),
        ("liar", "unreachable"),
        ("hangs-up", "unreachable"),
        ("nonsense", "unreachable"),
        ("endless-headers", "unreachable"),
        ("endless-line", "unreachable"),
        ("endless-continue", "timeout"),
        ("silent", "timeout"),
        ("stops", "timeout"),
        ("drip", "timeout"),
        ("drip-headers", "timeout"),
        ("404", "status"),
        ("500", "status"),
        ("204", "status"),
    ],
)
def test_bodies_that_do_not_arrive(web, path, reason):
    start = time.monotonic()
    seconds = 0.3 if reason == "timeout" else 5.0
    assert reason_of(web, f"http://images.example/{path}", seconds=seconds) == reason
    assert time.monotonic() - start < 1.5


def test_the_body_of_a_redirect_is_not_read(web):
    assert fetch(web, "http://images.example/endless-redirect") == encoded()


def test_time_is_limited_for_the_whole_download(web):
    """Check a slow resolver, a slow connection, and that redirects do not start the time anew."""
    slow = Web(web.port)
    slow.resolve = lambda host, port: time.sleep(1)
    start = time.monotonic()
    assert reason_of(slow, "http://images.example/good.png", seconds=0.2) == "address"
    slow = Web(web.port)
    slow.connect = too_slow
    assert reason_of(slow, "http://images.example/good.png", seconds=0.2) == "timeout"
    assert time.monotonic() - start < 0.9
    asked = []
    slow = Web(web.port)
    slow.resolve = lambda host, port: asked.append(time.sleep(0.15)) or [PUBLIC]
    assert reason_of(slow, "http://images.example/loop", seconds=0.4) in ("timeout", "address")
    assert len(asked) <= 3


def test_the_next_address_is_tried(web):
    web.names["images.example"] = ["2606:4700::1111", PUBLIC]
    web.dead = {"2606:4700::1111"}
    assert fetch(web, "http://images.example/good.png") == encoded()
    web.dead.add(PUBLIC)
    assert reason_of(web, "http://images.example/good.png") == "unreachable"


def test_the_real_network_of_this_machine():
    """Check the resolver and the connection that a server uses, on names and addresses of this machine."""
    assert "127.0.0.1" in resolve_name("localhost", 80) or "::1" in resolve_name("localhost", 80)
    with media_server() as running, connect_to("127.0.0.1", running.server_port, 1.0) as sock:
        assert sock.getpeername()[1] == running.server_port
    with pytest.raises(OSError):
        connect_to("127.0.0.1", running.server_port, 1.0)
    policy = MediaPolicy(seconds=5.0)
    network = Network(resolve_name, connect_to, ssl.create_default_context())
    for host in ("localhost", "127.0.0.1", socket.gethostname()):
        with pytest.raises(MediaError) as caught:
            download(f"http://{host}/", policy, network)
        assert caught.value.reason == "address"


def test_connections_are_closed(web):
    """Check that a connection ends with its download, whatever came of it."""
    opened, connect = [], web.connect
    web.connect = lambda *args: opened.append(connect(*args)) or opened[-1]
    fetch(web, "http://images.example/count?n=2")
    for path in ("endless", "404", "nonsense", to("http://127.0.0.1/")[len("http://images.example/") :]):
        reason_of(web, f"http://images.example/{path}")
    reason_of(web, "https://images.example/good.png")  # the server does not speak TLS
    assert len(opened) == 8 and all(sock.fileno() == -1 for sock in opened)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the path of a certificate for images.example with its key. It is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path_factory.mktemp("certificate") / "images.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=images"
    command += f" -addext subjectAltName=DNS:images.example -keyout {path} -out {path}.crt"
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".pem.crt").read_text())
    return path


def test_https_checks_the_certificate_by_name(certificate):
    """Check that the name goes into the handshake and the certificate, and that the connection goes to the address."""
    tls, names = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    tls.load_cert_chain(certificate)
    tls.sni_callback = lambda sock, name, context: names.append(name)
    trusting = ssl.create_default_context(cafile=certificate)
    with media_server(tls) as running:
        web = Web(running.server_port)
        assert fetch(web, "https://images.example/good.png", tls=trusting) == encoded()
        assert names == ["images.example"] and web.connected == [(PUBLIC, 443)]
        assert running.requests[0][0] == "images.example"
        assert reason_of(web, "https://other.example/good.png", tls=trusting) == "unreachable"
        assert reason_of(web, "https://93.184.216.34/good.png", tls=trusting) == "unreachable"
        assert reason_of(web, "https://images.example/good.png") == "unreachable"  # an unknown authority
        assert len(running.requests) == 1
