"""Images from the web, fetched without letting whoever names the URL reach what only this machine can.

Every connection, that of each redirect too, goes to an address that was looked at first; it is the address that
is connected to, so a name cannot change its meaning in between.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from utils.commands import printable
from utils.conversation import ImageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_CHUNK = 65536
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_INNER = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32", "64:ff9b:1::/48", "fec0::/10")))
"""Not of the public internet, though some versions of Python take them for it; clouds answer at the first two."""


class RemoteImageError(ImageError):
    """A URL that is not, or cannot be, fetched; the message names it and says why."""


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system finds them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@dataclass(frozen=True)
class RemoteImages:
    """How images are fetched: at most `max_bytes` within `seconds`, redirects and all.

    Only addresses of the public internet are connected to, and those in `networks`; `anywhere` is for those
    who fetch for themselves: a person at a terminal may see what his machine sees.
    """

    max_bytes: int
    seconds: float = 20.0
    networks: Sequence[Network] = ()
    anywhere: bool = False
    resolve: Callable[[str, int], list[str]] = resolve

    def fetch(self, url: str) -> bytes:
        """The body that `url` gives. Raises `RemoteImageError`."""
        deadline, shown = time.monotonic() + self.seconds, printable(url, 100)
        try:
            for _ in range(MAX_REDIRECTS + 1):
                body, url = self._step(url, deadline)
                if body is not None:
                    return body
        except RemoteImageError as error:
            raise RemoteImageError(f"{shown}: {error}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = _reason(error) if time.monotonic() < deadline else "it took too long"
            raise RemoteImageError(f"{shown}: it cannot be fetched ({reason})") from error
        raise RemoteImageError(f"{shown}: more than {MAX_REDIRECTS} redirects")

    def _step(self, url: str, deadline: float) -> tuple[bytes | None, str]:
        """One request: the body, or the URL that it redirects to."""
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise RemoteImageError("only http and https URLs are fetched")
        if parts.username or parts.password:
            raise RemoteImageError("URLs with a user name are not fetched")
        port = parts.port or _PORTS[parts.scheme]
        connection = _Connection(parts.hostname, port, self._connected(parts.hostname, port, deadline))
        # A socket's own timeout begins anew with every byte, so a slow other side could hold us for ever.
        watch = threading.Timer(max(deadline - time.monotonic(), 0), connection.cut)
        watch.start()
        try:
            if parts.scheme == "https":
                connection.encrypt()
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "VisualChat"})
            response = connection.getresponse()
            if response.status in _REDIRECTS and (location := response.getheader("Location")):
                return None, urljoin(url, location)
            if response.status != http.client.OK:
                raise RemoteImageError(f"the server answered {response.status}")
            return self._body(response, deadline), url
        finally:
            watch.cancel()
            connection.close()

    def _connected(self, host: str, port: int, deadline: float) -> socket.socket:
        addresses = [ipaddress.ip_address(each.partition("%")[0]) for each in self.resolve(host, port)]
        refused = [each for each in addresses if not self._may_reach(each)]
        if refused or not addresses:  # one inner address among outer ones: somebody is trying
            raise RemoteImageError("its address is not one of the public internet")
        return socket.create_connection((str(addresses[0]), port), timeout=_left(deadline))

    def _may_reach(self, address: Address) -> bool:
        if self.anywhere or any(address in network for network in self.networks):
            return True
        return all(_is_public(each) for each in _meant(address))

    def _body(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        too_large = RemoteImageError(f"more than the {self.max_bytes:,} bytes that are accepted")
        if int(response.getheader("Content-Length") or 0) > self.max_bytes:
            raise too_large
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > self.max_bytes:
                raise too_large
            _left(deadline)
        _left(deadline)  # what was cut off is not whole
        return bytes(body)


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that is connected already; its host is named to the other side all the same."""

    def __init__(self, host: str, port: int, connected: socket.socket) -> None:
        super().__init__(host, port)
        self.sock = self._connected = connected  # the first is given up before the body is read

    def encrypt(self) -> None:
        context = ssl.create_default_context()
        self.sock = self._connected = context.wrap_socket(
            self.sock, server_hostname=self.host, do_handshake_on_connect=False
        )
        self._connected.do_handshake()

    def cut(self) -> None:
        """Let whoever waits for the other side wait no longer."""
        with suppress(OSError):  # it is over already
            self._connected.shutdown(socket.SHUT_RDWR)


def _is_public(address: Address) -> bool:
    inner = any(address in network for network in _INNER)
    return address.is_global and not address.is_multicast and not inner


def _meant(address: Address) -> list[Address]:
    """An address, and those of the older kind that it wraps."""
    meant: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        meant += [each for each in (address.ipv4_mapped, address.sixtofour) if each]
        meant += address.teredo or ()
        if address in _NAT64 or int(address) >> 32 == 0:  # the deprecated "compatible" form
            meant.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return meant


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise RemoteImageError("it took too long")
    return left


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
