"""What a server listens to, whom it answers, and what a request may cost."""

import ipaddress
import socket
from dataclasses import dataclass

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server. Each bound is a flag of `qwen-vl serve`, with this default.

    api_keys: a request needs one of them; without any, a loopback address or `insecure`. allowed_hosts: further names
    in the Host header ("*": all). allowed_origins: web pages that may read answers (CORS; "*": all).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    log_requests: bool = False
    max_connections: int = 512
    header_seconds: float = 20
    stall_seconds: float = 60
    max_body_bytes: int = 64 * 2**20
    body_seconds: float = 60
    max_requests: int = 128
    request_seconds: float = 600
    drain_seconds: float = 30
    fetch_workers: int = 8

    def __post_init__(self) -> None:
        """Raise ValueError for settings that would open the server to anyone by mistake."""
        if not (self.api_keys or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"--host {self.host}: other machines could use this server without a key; set --api_key (or the "
                "environment variable QWEN_VL_API_KEY), or --insecure if that is meant"
            )
        if any(len(key) < 8 for key in self.api_keys):
            raise ValueError("an API key has fewer than 8 characters; take a long random one")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address, which is given as a number or as localhost."""
    address = as_address(host)
    return host in LOOPBACK_NAMES or (address is not None and address.is_loopback)


def as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host is, with or without brackets. A name gives None."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def may_be_called(host: str, settings: ServerSettings) -> bool:
    """Return whether the name of a Host header is one of this server.

    A web page can let its own name resolve to this machine ("rebinding"), and then read answers as its own. An IP
    address in the header cannot come from that, so it is accepted.
    """
    names = {"localhost", settings.host.lower(), socket.gethostname().lower(), *settings.allowed_hosts}
    return "*" in names or host.lower() in names or as_address(host) is not None
