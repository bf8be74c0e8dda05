"""Fetching what a request names from hosts that the operator named, and from nowhere else.

A host's name says little about where it leads: it is looked up once, every address it has must be
a public one, and the connection is made to such an address, not to the name. Redirects are not
followed, and neither proxies nor cookies nor keys of this process are used. Knows nothing of
images.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from urllib.parse import SplitResult, urlsplit

import httpcore

Resolver = Callable[[str, int], Awaitable[list[str]]]
_PORTS = {"http": 80, "https": 443}
_LOOKUPS = 4  # names that are looked up at once
_FAILURES = (
    OSError,
    UnicodeError,  # of a name that cannot be looked up
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)
# Addresses that stand for IPv4 ones, which are their last 32 bits (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class NotFetched(ValueError):
    """It is not there, too large or too slow, or may not be asked for. The message says which."""


def is_public(address: str) -> bool:
    """Whether an address belongs to the internet at large, and so does each one inside of it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # such as one with a zone, which is of this network
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = [ip.sixtofour, *(ip.teredo or ())]
        if not all(is_public(str(each)) for each in inner if each is not None):
            return False
        if ip.ipv4_mapped or ip.is_site_local:
            return False
    return ip.is_global and not (
        ip.is_private
        or ip.is_loopback
        or ip.is_link_local
        or ip.is_multicast
        or ip.is_reserved
        or ip.is_unspecified
    )


class Fetcher:
    """Reads ``http:`` and ``https:`` URLs.

    Args:
        hosts: names that may be asked, on the scheme's own port, or each with a port:
            ``images.example``, ``images.example:8443``.
        max_bytes: of a response's body.
        timeout: seconds for all of it, from the look-up to the last byte.
        resolve: gives the addresses of a host; the system's by default.
        backend: opens connections to addresses; httpcore's by default.
    """

    def __init__(
        self,
        hosts: Collection[str],
        max_bytes: int,
        timeout: float,
        resolve: Resolver | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self.hosts = frozenset(host.lower() for host in hosts)
        self.max_bytes = max_bytes
        self.timeout = timeout
        # Of its own: a name server that does not answer keeps threads that nobody else waits for.
        self._lookups = ThreadPoolExecutor(_LOOKUPS, "specdec-lookups")
        self._backend = _Pinned(resolve or self._look_up, backend or httpcore.AnyIOBackend())

    async def fetch(self, url: str) -> bytes:
        """The body of the response to one GET.

        Raises:
            NotFetched: see there.
        """
        target = self._checked(url)
        try:
            async with asyncio.timeout(self.timeout):
                return await self._get(target)
        except TimeoutError as error:
            raise NotFetched(f"took more than {self.timeout:g} s") from error
        except _FAILURES as error:
            raise NotFetched("cannot be fetched: the connection or the answer is broken") from error

    def _checked(self, url: str) -> httpcore.URL:
        """The URL taken apart, if it may be asked for.

        Raises:
            NotFetched: it may not.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS[parts.scheme]
            host = (parts.hostname or "").encode("ascii").decode()
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            encoded = target.encode("ascii")
        except (ValueError, KeyError):
            raise NotFetched("is no http or https URL in plain ASCII") from None
        if parts.username is not None or parts.password is not None:
            raise NotFetched("carries a user's name or password, which is not allowed")
        self._check_host(host, port, parts)
        return httpcore.URL(scheme=parts.scheme, host=host, port=port, target=encoded)

    def _check_host(self, host: str, port: int, parts: SplitResult) -> None:
        named = f"[{host}]" if ":" in host else host
        usual = port == _PORTS[parts.scheme]
        if f"{named}:{port}" not in self.hosts and not (usual and named in self.hosts):
            allowed = ", ".join(sorted(self.hosts)) or "none"
            raise NotFetched(f"is not of a host that is allowed here: {allowed}")

    async def _get(self, url: httpcore.URL) -> bytes:
        # Nothing but what was asked for: no compression, behind which a bomb may be.
        headers = [
            ("Accept-Encoding", "identity"),
            ("Accept", "image/*"),
            ("User-Agent", "specdec"),
        ]
        async with (
            httpcore.AsyncConnectionPool(self._tls, network_backend=self._backend) as pool,
            pool.stream("GET", url, headers=headers) as response,
        ):
            if response.status != 200:
                followed = "; redirects are not followed" if response.status // 100 == 3 else ""
                raise NotFetched(f"was answered with {response.status}{followed}")
            self._check_size(_promised(response.headers))
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                self._check_size(len(body))
            return bytes(body)

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise NotFetched(f"has more than {self.max_bytes} bytes, the limit")

    async def _look_up(self, host: str, port: int) -> list[str]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._lookups, look_up)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked: between look-up and connection is no second one.

    httpcore still takes the host's name for the Host header, for SNI and for the certificate.
    """

    def __init__(self, resolve: Resolver, inner: httpcore.AsyncNetworkBackend) -> None:
        self._resolve = resolve
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(is_public, addresses)):
            raise NotFetched("leads to no public address")
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout)
            except (OSError, httpcore.NetworkError):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout)


def _promised(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The body's size as the response gives it; 0 if it does not. httpcore holds it to that."""
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    return max((int(each) for each in lengths if each.isdigit()), default=0)
