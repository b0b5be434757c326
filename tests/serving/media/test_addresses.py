"""Addresses in requests: which hosts are public, and what no address may hold."""

import pytest

from qwen_vl.serving.media.addresses import is_allowed_domain, is_public, parse
from qwen_vl.serving.media.policy import MediaError

PUBLIC = ["8.8.8.8", "93.184.216.34", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1"]
PUBLIC += [
    "192.0.1.1",
    "223.255.255.255",
    "168.63.129.15",
    "2606:4700::1111",
    "2a00:1450:4001::200e",
    "2001:4860::8888",
]
PUBLIC += ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]

NOT_PUBLIC = {
    "this machine": ["127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "::1", "::"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255", "fd00::1"],
    "link-local": ["169.254.0.1", "fe80::1", "fec0::1", "febf::1"],
    "metadata": [
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "fd00:ec2::254",
    ],
    "multicast": ["224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "198.18.0.1", "198.19.255.255", "192.88.99.1", "4000::1", "100::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"],
    "nat64": ["64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "64:ff9b:1::8.8.8.8", "64:ff9b::a9fe:a9fe"],
    "tunnels": ["2002:7f00:1::", "2002:a00:1::1", "2002:808:808::1", "2001::1", "2001:0:7f00:1::", "2001:10::1"],
    "no address": ["", "localhost", "127.1", "0x7f.0.0.1", "0177.0.0.1", "2130706433", "1.2.3.4.5", "fe80::1%eth0"],
    "zones": ["2606:4700::1111%lo", "::1%1"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", [address for group in NOT_PUBLIC.values() for address in group])
def test_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "url, host, port, target, authority",
    [
        ("http://images.example", "images.example", 80, "/", "images.example"),
        ("HTTPS://Images.EXAMPLE./a.png?b=1#c", "images.example", 443, "/a.png?b=1", "images.example"),
        ("http://images.example:443/a", "images.example", 443, "/a", "images.example:443"),
        ("https://images.example:80?x", "images.example", 80, "/?x", "images.example:80"),
        ("http://my_bucket.s3.example/%20a%2Fb", "my_bucket.s3.example", 80, "/%20a%2Fb", "my_bucket.s3.example"),
        ("http://bücher.example/ü", "xn--bcher-kva.example", 80, "/%C3%BC", "xn--bcher-kva.example"),
        ("http://[2606:4700::1111]/a", "2606:4700::1111", 80, "/a", "[2606:4700::1111]"),
        ("http://[2606:4700:0::1111]:443/", "2606:4700::1111", 443, "/", "[2606:4700::1111]:443"),
        ("http://１２７。０。０。１/", "127.0.0.1", 80, "/", "127.0.0.1"),
        ("http://ⓛocalhost/", "localhost", 80, "/", "localhost"),
        ("http://127.0.0.1./", "127.0.0.1", 80, "/", "127.0.0.1"),
    ],
)
def test_an_address_is_read_once(url, host, port, target, authority):
    """Check that what is compared with the lists is what is resolved, connected to and sent."""
    address = parse(url, (80, 443))
    assert (address.host, address.port, address.target, address.authority) == (host, port, target, authority)


REFUSED = {
    "url": [
        *("http://ok.example\\@127.0.0.1/", "http://ok.example\\.evil.example/", "http://user@ok.example/"),
        *("http://user:word@ok.example/", "http://@ok.example/", "http://ok.example@127.0.0.1/", "http:///a.png"),
        *("http://", "http://ok.example/a b", "http://ok.example/\ta", "http://ok.exa\nmple/", " http://ok.example/"),
        *("http://ok.example/\x00", "http://ok.example/\x7f", "http://ok.example/\x85", "http://ok.example/\u3000"),
        *("http://ok.example/\r\nHost: evil", "\x01http://ok.example/", "http://ok.example:port/", "http://[::1/"),
        *("http://ok.example:99999/", "http://ok.example:-1/", "http://[::1%25lo]/", "http://[fe80::1%lo]/"),
        *("http://%6c%6fcalhost/", "http://ok..example/", "http://.example/", "http://" + "a" * 64 + ".example/"),
        *("http://" + "a." * 130 + "example/", "http://ok.example/" + "a" * 9000, "http://a!b.example/"),
        *("ftp://ok.example/a", "file:///etc/passwd", "gopher://ok.example/", "ok.example/a.png", "//ok.example/a"),
        *(
            "http:ok.example",
            "http:/ok.example",
            "http://ok.example/\ud800",
            "http://a\u2100b.example/",
            "http://[1.2]/",
        ),
    ],
    "port": [f"{start}:{port}/" for start in ("http://ok.example", "https://1.1.1.1") for port in (0, 22, 8080, 65535)],
    "address": [
        *("http://2130706433/", "http://0x7f.1/", "http://0x7f000001/", "http://127.1/", "http://127.0.1/"),
        *("http://0177.0.0.1/", "http://0x7f.0.0.1/", "http://127.0.0.01/", "http://1.2.3.4.5/", "http://0x/"),
        *("http://256.1.1.1/", "http://a.b.127/", "http://evil.0x1/", "http://２１３０７０６４３３/", "http://0/"),
    ],
}


@pytest.mark.parametrize("reason, url", [(reason, url) for reason, urls in REFUSED.items() for url in urls])
def test_an_address_is_refused(reason, url):
    with pytest.raises(MediaError) as caught:
        parse(url, (80, 443))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "host, allowed",
    [
        ("images.example", True),
        ("a.images.example", False),
        ("images.example.evil.test", False),
        ("evilimages.example", False),
        ("a.cdn.example", True),
        ("a.b.cdn.example", True),
        ("cdn.example", False),
        ("evilcdn.example", False),
        ("1.1.1.1", False),
    ],
)
def test_domains(host, allowed):
    assert is_allowed_domain(host, ("Images.Example.", "*.cdn.example")) == allowed
