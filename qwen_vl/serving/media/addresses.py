"""Addresses of the web: one parser for the checks and the connection, and which hosts are public. Pure functions."""

import ipaddress
import re
import urllib.parse
from collections.abc import Collection
from typing import NamedTuple

from .policy import MediaError

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_LENGTH = 8192  # characters of an address
MAX_HOST = 253  # characters of a host name (RFC 1035)
# White space, control characters and backslashes: parsers disagree about what they mean.
FORBIDDEN = re.compile(r"[\s\x00-\x20\x7f-\xa0\\]")
HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as a last label: the C library reads the host as an IPv4 address

# From the registries of special addresses of IANA. `is_global` of the standard library depends on the Python version.
NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # services of the host, in the virtual machines of one cloud
        *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),  # 2002: 6to4, out of use
    )
]
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # everything else in IPv6 is special
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class WebAddress(NamedTuple):
    """A checked http(s) address. `host` is ASCII in lower case, without brackets or final dot; `target` is encoded."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Return the value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str, ports: Collection[int]) -> WebAddress:
    """Return the parts of an http(s) address.

    Raise MediaError if it is malformed, has a user name or a port that is not in `ports`, or if its host is a number
    in another form than a dotted quad.
    """
    if len(url) > MAX_LENGTH or FORBIDDEN.search(url):
        raise MediaError("url")
    try:
        parts = urllib.parse.urlsplit(url)
        port, host = parts.port, parts.hostname
        path, query = (urllib.parse.quote(part, safe="%/:=&?+,;@!$'()*~[]|") for part in (parts.path, parts.query))
    except ValueError:  # UnicodeError too
        raise MediaError("url") from None
    if parts.scheme not in DEFAULT_PORTS or not host or "@" in parts.netloc:
        raise MediaError("url")
    port = DEFAULT_PORTS[parts.scheme] if port is None else port
    if port not in ports:
        raise MediaError("port")
    return WebAddress(parts.scheme, ascii_host(host), port, (path or "/") + (f"?{query}" if query else ""))


def ascii_host(host: str) -> str:
    """Return a host in the one form in which it is checked, resolved and sent.

    Names are encoded before they are looked at, because full-width digits and dots become plain ones.
    Raise MediaError if it is no name, no dotted quad and no IPv6 address.
    """
    if ":" in host:
        address = ip_address(host)
        if address is None:
            raise MediaError("url")
        return str(address)
    try:
        name = host.encode("idna").decode("ascii").lower().removesuffix(".") if len(host) <= MAX_HOST + 1 else ""
    except UnicodeError:
        raise MediaError("url") from None
    if len(name) > MAX_HOST or not HOST_NAME.fullmatch(name):
        raise MediaError("url")
    if NUMBER.fullmatch(name.rpartition(".")[2]) and ip_address(name) is None:
        raise MediaError("address")
    return name


def ip_address(host: str) -> Address | None:
    """Return a host as an IP address, or None if it is none in the usual form, or has a zone."""
    try:
        return None if "%" in host else ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(host: str) -> bool:
    """Return whether a host is an IP address of the public internet.

    An IPv4 address inside an IPv6 one (mapped, or NAT64) is judged as the IPv4 address that it reaches.
    """
    address = ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        elif address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address not in GLOBAL_UNICAST:
            return False
    return address is not None and not any(address in network for network in NOT_PUBLIC)


def is_allowed_domain(host: str, domains: Collection[str]) -> bool:
    """Return whether a host is one of `domains`, or below one that is written as `*.example.org`."""
    names = [domain.lower().removesuffix(".") for domain in domains]
    return any(host.endswith(name[1:]) if name.startswith("*.") else host == name for name in names)
