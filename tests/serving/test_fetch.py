"""What URLs of strangers lead to: names and addresses that they may not reach, servers that lie."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable
from io import BytesIO

import httpcore
import pytest
from PIL import Image

from specdec.serving.fetch import is_public
from specdec.serving.images import ImageLimits, ImageReader, ImageRefused

HOST, PUBLIC = "images.example", "93.184.216.34"
Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Detour(httpcore.AsyncNetworkBackend):
    """Notes what is connected to and leads all of it to one local port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connected: list[tuple[str, int]] = []
        self.inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append((host, port))
        return await self.inner.connect_tcp("127.0.0.1", self.port, timeout)


class Lookups:
    """Answers of a name server, one after another; the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


class Visit:
    """One read of a URL from a local server, and what was seen of it."""

    def __init__(
        self,
        respond: Respond | bytes,
        url: str = f"http://{HOST}/picture.png",
        *,
        lookups: Lookups | None = None,
        hosts: Iterable[str] = (HOST,),
        timeout: float = 30.0,
    ) -> None:
        self.heard = b""
        self.lookups = lookups or Lookups([PUBLIC])
        self.limits = ImageLimits(
            max_bytes=20_000, max_pixels=60_000, allowed_hosts=frozenset(hosts), timeout=timeout
        )
        self.image: Image.Image | None = None
        self.message = ""
        asyncio.run(self._run(respond, url))

    async def _run(self, respond: Respond | bytes, url: str) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                self.heard = await reader.readuntil(b"\r\n\r\n")
                if isinstance(respond, bytes):
                    writer.write(respond)
                else:
                    await respond(reader, writer)
                await writer.drain()
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        self.backend = Detour(server.sockets[0].getsockname()[1])
        try:
            reader = ImageReader(self.limits, resolve=self.lookups, backend=self.backend)
            self.image = await reader.read(url)
        except ImageRefused as error:
            self.message = str(error)
        finally:
            server.close()
            await server.wait_closed()


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *(headers or (f"Content-Length: {len(body)}",)), "", ""]
    return "\r\n".join(lines).encode() + body


def picture() -> bytes:
    file = BytesIO()
    Image.radial_gradient("L").resize((60, 40)).save(file, "PNG")
    return file.getvalue()


PICTURE = picture()


def test_fetched() -> None:
    """The name goes into the Host header, the connection to the address."""
    visit = Visit(response(PICTURE), f"http://{HOST}/a/picture.png?size=2#top")
    assert visit.image is not None
    assert visit.image.size == (60, 40)
    assert visit.backend.connected == [(PUBLIC, 80)]
    request = visit.heard.decode().lower()
    assert request.startswith("get /a/picture.png?size=2 http/1.1")
    assert f"\r\nhost: {HOST}\r\n" in request
    assert "\r\naccept-encoding: identity\r\n" in request


def test_name_is_looked_up_once() -> None:
    """DNS rebinding: a name server that answers with a public address when it is checked, and with
    this machine's when it is connected to."""
    visit = Visit(response(PICTURE), lookups=Lookups([PUBLIC], ["127.0.0.1"]))
    assert visit.image is not None
    assert visit.lookups.asked == [(HOST, 80)]
    assert visit.backend.connected == [(PUBLIC, 80)]
    later = Visit(response(PICTURE), lookups=Lookups(["127.0.0.1"]))
    assert "leads to no public address" in later.message
    assert later.backend.connected == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("8.8.8.8", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),  # NAT64 of PUBLIC
        ("127.0.0.1", False),
        ("127.255.0.3", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.31.255.255", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),  # shared by a provider's customers
        ("169.254.169.254", False),
        ("192.0.0.1", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("239.1.2.3", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("fc00::1", False),
        ("fd12:3456::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("2001:db8::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        (f"::ffff:{PUBLIC}", False),
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("2002:a00:1::", False),  # 6to4 of 10.0.0.1
        ("64:ff9b::7f00:1", False),  # NAT64 of 127.0.0.1
        ("64:ff9b::a9fe:a9fe", False),  # NAT64 of 169.254.169.254
        ("64:ff9b:1::a00:1", False),
        ("2001:0:7f00:1::", False),  # Teredo
        ("localhost", False),
        ("", False),
    ],
)
def test_addresses(address: str, public: bool) -> None:
    """One class of addresses left out, and a request reads what only this network's may."""
    assert is_public(address) == public


def test_every_address_of_a_name_is_checked() -> None:
    """A name with two addresses: looking at the first one only lets the second one in."""
    for answers in ([PUBLIC, "10.0.0.1"], ["::1", PUBLIC], []):
        visit = Visit(response(PICTURE), lookups=Lookups(answers))
        assert "leads to no public address" in visit.message
        assert visit.backend.connected == []


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("http://other.example/x", "is not of a host that is allowed here: images.example"),
        ("http://images.example.evil.example/x", "not of a host"),
        ("http://evil.example/images.example", "not of a host"),
        ("http://evil.example#images.example", "not of a host"),
        ("http://evil.example\\.images.example/x", "not of a host"),
        ("http://images.example./x", "not of a host"),
        (f"http://{HOST}:8080/x", "not of a host"),
        (f"http://{HOST}:443/x", "not of a host"),
        (f"https://{HOST}:80/x", "not of a host"),
        (f"http://{PUBLIC}/x", "not of a host"),
        ("http://2130706433/x", "not of a host"),
        ("http:///x", "not of a host"),
        ("http:images.example", "not of a host"),
        (f"http://evil.example@{HOST}/x", "carries a user's name or password"),
        (f"http://{HOST}@evil.example/x", "carries a user's name or password"),
        (f"http://{HOST}\\@evil.example/x", "carries a user's name or password"),
        (f"http://{HOST}:port/x", "no http or https URL"),
        (f"http://{HOST}/bräu", "no http or https URL"),
        ("http://[::1/x", "no http or https URL"),
        ("http://images。example/x", "no http or https URL"),
        (f"http://{HOST}/a b", "cannot be fetched"),
        (f"ftp://{HOST}/x", r"allowed are data: URLs in base64 and http\(s\): URLs of images"),
    ],
)
def test_urls_that_lead_elsewhere(url: str, pattern: str) -> None:
    """Where a URL leads is read in many ways; each of these has fooled somebody's check."""
    visit = Visit(response(PICTURE), url)
    assert visit.image is None
    with pytest.raises(ImageRefused, match=pattern):
        raise ImageRefused(visit.message)
    assert visit.heard == b""


def test_port_of_its_own() -> None:
    """A name with a port allows that port, and not the usual one."""
    hosts = [f"{HOST.upper()}:8443"]
    visit = Visit(response(PICTURE), f"http://{HOST}:8443/x", hosts=hosts)
    assert visit.image is not None
    assert visit.backend.connected == [(PUBLIC, 8443)]
    assert f"host: {HOST}:8443" in visit.heard.decode().lower()
    assert "not of a host" in Visit(response(PICTURE), f"http://{HOST}/x", hosts=hosts).message


async def _trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Never silent for long, and never done."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("respond", "pattern"),
    [
        (
            response(b"", "Location: http://127.0.0.1/", "Content-Length: 0", status="302 Found"),
            "was answered with 302; redirects are not followed",
        ),
        (response(b"hush", status="404 Not Found"), "was answered with 404$"),
        (response(PICTURE, "Content-Length: 20001"), "more than 20000 bytes"),
        (response(bytes(20_001), "Connection: close"), "more than 20000 bytes"),
        (
            response(b"4e21\r\n" + bytes(20_001) + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
            "more than 20000 bytes",
        ),
        (response(PICTURE, f"Content-Length: {len(PICTURE) + 1}"), "cannot be fetched"),
        (response(PICTURE, "Content-Length: 100"), "broken or truncated"),
        (response(PICTURE, "Content-Length: lots"), "cannot be fetched"),
        (response(PICTURE, "Content-Length: 0", "Content-Length: 9"), "cannot be fetched"),
        (response(b"", "X: " + "x" * 200_000), "cannot be fetched"),
        (response(b"hush"), "none of the formats"),
        (b"hush\r\n\r\n", "cannot be fetched"),
        (b"", "cannot be fetched"),
    ],
)
def test_servers_that_lie(respond: bytes, pattern: str) -> None:
    """A body without end, one that is cut off, and a redirect to this machine itself."""
    visit = Visit(respond)
    assert visit.image is None
    assert f"http://{HOST}/… " in visit.message
    with pytest.raises(ImageRefused, match=pattern):
        raise ImageRefused(visit.message)
    assert "hush" not in visit.message


def test_time_is_limited_in_all() -> None:
    """A limit on each read alone lets a server that sends a byte now and then hold on for ever."""
    assert "took more than 0.3 s" in Visit(_trickle, timeout=0.3).message

    class Silent(Lookups):
        async def __call__(self, host: str, port: int) -> list[str]:
            await asyncio.sleep(60)
            return []

    assert "took more than 0.1 s" in Visit(b"", lookups=Silent(), timeout=0.1).message


def test_next_address_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a name with an IPv6 and an IPv4 address, the first one may not be reachable from here."""
    connect = Detour.connect_tcp

    async def flaky(self: Detour, host: str, port: int, *rest: float) -> object:
        stream = await connect(self, host, port)
        if ":" in host:
            await stream.aclose()
            raise httpcore.ConnectError
        return stream

    monkeypatch.setattr(Detour, "connect_tcp", flaky)
    visit = Visit(response(PICTURE), lookups=Lookups(["2606:2800:220:1::1", PUBLIC]))
    assert visit.image is not None
    assert [host for host, _ in visit.backend.connected] == ["2606:2800:220:1::1", PUBLIC]


def test_certificate_is_that_of_the_name() -> None:
    """Connected to an address, and yet the name is what the certificate is checked for."""
    seen: list[tuple[ssl.SSLContext, str | None]] = []

    class Stream(httpcore.AsyncMockStream):
        async def start_tls(
            self,
            ssl_context: ssl.SSLContext,
            server_hostname: str | None = None,
            timeout: float | None = None,
        ) -> httpcore.AsyncNetworkStream:
            seen.append((ssl_context, server_hostname))
            return self

    class Backend(httpcore.AsyncMockBackend):
        async def connect_tcp(self, host: str, port: int, *_: object, **__: object) -> Stream:
            assert (host, port) == (PUBLIC, 443)
            return Stream([response(PICTURE)])

    limits = ImageLimits(allowed_hosts=frozenset([HOST]))
    reader = ImageReader(limits, resolve=Lookups([PUBLIC]), backend=Backend([]))
    assert asyncio.run(reader.read(f"https://{HOST}/x")).size == (60, 40)
    ((context, name),) = seen
    assert name == HOST
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_slow_name_server_holds_up_who_names_its_hosts_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch look-ups in the threads that requests are submitted in: a time limit leaves the
    thread where it is, and soon there are none.
    """
    answering = threading.Event()

    def hangs(*_: object, **__: object) -> list[object]:
        answering.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    reader = ImageReader(ImageLimits(allowed_hosts=frozenset([HOST]), timeout=0.2))

    async def run() -> None:
        asked = [reader.read(f"https://{HOST}/{number}") for number in range(40)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all("took more than 0.2 s" in str(each) for each in outcomes)
        async with asyncio.timeout(10):
            await asyncio.to_thread(lambda: None)
        answering.set()

    try:
        asyncio.run(run())
    finally:
        answering.set()
