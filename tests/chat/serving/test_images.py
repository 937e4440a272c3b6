"""Images that are too much, and those that lie where nobody may reach: files of the server, hosts behind it."""

import ipaddress
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from itertools import islice

import httpx
import PIL.features
import PIL.Image
import pytest

from chat.remote_images import RemoteImageError, RemoteImages
from chat.server_setup import MEBIBYTE, Limits
from chat.serving.images import Sources
from tests.chat.local_web import give, listener
from tests.chat.serving.conftest import GOLDEN, Server, assert_error, data_url, png, user

pytestmark = pytest.mark.integration

JSON = {"Content-Type": "application/json"}
SIDES = ((60_000, 60_000), (30_000, 30_000), (20_000, 2_000), (65_535, 65_535))


KINDS = (("JPEG", {}), ("GIF", {}), ("PNG", {"compress_level": 1}))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width: int, height: int, rows: int = 2000, kind: int = 6) -> bytes:
    """A PNG that says it is large, and of which `rows` rows are there, all zero."""
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    pixels = zlib.compress(bytes(min(rows * (1 + 4 * width), 100_000_000)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_with_text(size: int) -> bytes:
    """A small PNG with a comment that unpacks to `size` bytes."""
    plain = png(1)
    return plain[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(size), 9)) + plain[33:]


def saved(size: tuple[int, int], kind: str, **settings) -> bytes:
    file = BytesIO()
    PIL.Image.new("L" if kind == "JPEG" else "P", size).save(file, kind, **settings)
    return file.getvalue()


def jpeg_of_many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    content = saved((4000, 4000), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 500 + b"\xff\xd9"


def patched(content: bytes, place: int, value: bytes) -> bytes:
    return content[:place] + value + content[place + len(value) :]


def bombs() -> Iterator[bytes]:
    """Bodies that would cost much, if they were taken at their word."""
    pictures = [
        data_url(png_bomb(*size, rows=rows, kind=kind))
        for size in SIDES
        for rows, kind in [(1, 6), (900, 6), (900, 2)]
    ]
    pictures += [data_url(png_with_text(size * MEBIBYTE)) for size in (100, 400)]
    pictures.append(data_url(jpeg_of_many_scans(), "jpeg"))
    jpeg = saved((8, 8), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    pictures += [data_url(patched(jpeg, frame, struct.pack(">HH", *size)), "jpeg") for size in SIDES[1:]]
    gif, bmp = saved((8, 8), "GIF"), saved((8, 8), "BMP")
    pictures += [data_url(patched(gif, 6, struct.pack("<HH", *size)), "gif") for size in SIDES[1:]]
    if "avif" in PIL.features.get_supported():
        avif = saved((8, 8), "AVIF")
        extent = avif.index(b"ispe") + 8
        pictures += [data_url(patched(avif, extent, struct.pack(">II", *size)), "avif") for size in SIDES]
    pictures += [data_url(patched(bmp, 18, struct.pack("<ii", *size)), "bmp") for size in SIDES]
    pictures += [data_url(saved(size, "PNG")) for size in ((9000, 9000), (25_001, 1000))]
    pictures.append(data_url(saved((5001, 5000), "WEBP", lossless=True, method=0), "webp"))
    pictures += [data_url(saved(size, "PNG")) for size in ((60_000, 2), (2, 60_000))]  # lines
    pictures += [data_url(saved((5000, 5001), kind, **how), kind) for kind, how in KINDS]
    pictures += [data_url(bytes(17 * MEBIBYTE)), "data:image/png;base64," + "A" * 23 * MEBIBYTE]
    for url in pictures:
        yield json.dumps({"model": "tiny", "messages": [user("What?", url)]}).encode()
    for size in (33, 40, 64, 100):
        yield b'{"model": "tiny", "messages": "' + b"x" * size * MEBIBYTE + b'"}'
    yield b"[" * 31 * MEBIBYTE
    yield b"[" + b"0," * 15 * MEBIBYTE + b"0]"
    yield b'{"model": "tiny", "messages": [' + b'{"role": "user", "content": ""},' * 900_000 + b"0]}"
    yield b'{"model": "tiny", "messages": [{"role": "user", "content": "' + b"a b " * 7 * MEBIBYTE + b'"}]}'


@pytest.mark.parametrize(
    "every, least", [pytest.param(5, 8, marks=pytest.mark.slow), pytest.param(1, 40, marks=pytest.mark.long)]
)
def test_bombs(own_process, every, least):
    """All of them are refused at little cost, which is printed.

    The time is the server's own, whatever else the machine is doing; the memory is what it took at its highest.
    """
    server = own_process
    golden = server.text(**GOLDEN)
    before, most, seconds = server.resident_bytes(), 0, []
    server.forget_most()
    for content in islice(bombs(), None, None, every):
        started = server.cpu_seconds()
        assert_error(server.client.post("/v1/chat/completions", content=content, headers=JSON), 400, 413)
        seconds.append(server.cpu_seconds() - started)
        most = server.most_resident_bytes() - before
        assert seconds[-1] < 1 and most < 200e6, (content[:200], seconds[-1], most)
    print(f"\n{len(seconds)} bombs: {max(seconds):.2f} s of CPU at most, {most / 1e6:.0f} MB more memory")
    assert server.text(**GOLDEN) == golden and len(seconds) >= least


PATHS = [
    "/etc/passwd", "etc/passwd", "../../etc/passwd", "....//....//etc/passwd", "/etc/passwd\x00.png",
    "~/.ssh/id_rsa",
    "file:///etc/passwd", "file:/etc/passwd", "file://localhost/etc/passwd", "FILE:///etc/passwd",
    "file:////etc/passwd",
    "/proc/self/environ", "/proc/self/fd/0", "/proc/self/mem", "/dev/zero", "/dev/random", "/dev/stdin",
    "/dev/tty",
    "C:\\Windows\\win.ini", "C:/Windows/win.ini", "\\\\server\\share\\a.png", "//server/share/a.png", ".",
    "..", "/", "",
    "picture.png", "./picture.png", "{canary}", "file://{canary}", "{canary}/../{name}",
    "{folder}/./{name}", "link.png",
    "{folder}/link.png", "%2e%2e%2fetc%2fpasswd", "..%2f..%2fetc/passwd", "/etc/passwd#.png",
    "/etc/passwd?.png",
    "jar:file:///a.zip!/b.png", "php://filter/resource=/etc/passwd", "|cat /etc/passwd",
    "$(cat /etc/passwd)", "*.png",
    "data:text/plain;base64,L2V0Yy9wYXNzd2Q=", "\n/etc/passwd", " /etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("allowed", [False, True])
def test_paths_reach_nothing(serve, tmp_path, allowed):
    """A readable picture lies outside the folder that is allowed, with a link to it inside."""
    canary = tmp_path / "secret.png"
    canary.write_bytes(png(1))
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "link.png").symlink_to(canary)
    (folder / "mine.png").write_bytes(png(2))
    assert len(PATHS) >= 40
    with serve(sources=Sources(folder=folder if allowed else None)) as server:
        for path in PATHS:
            url = path.format(canary=canary, name=canary.name, folder=tmp_path)
            error = assert_error(server.ask(messages=[user("What?", url)]), 400)
            assert "root:" not in error["message"] and str(tmp_path) not in error["message"]
        for url in ("mine.png", f"file://{folder}/mine.png", str(folder / "mine.png")):
            assert server.ask(messages=[user("What?", url)]).status_code == (200 if allowed else 400)


def internal_urls(port: int) -> list[str]:
    """Ways to write this machine and its neighbours; all that resolve end at an address that is not public."""
    hosts = [
        "127.0.0.1", "127.1", "127.0.1", "127.000.000.001", "127.0.0.2", "127.255.255.254", "2130706433",
        "0x7f000001",
        "0x7f.0.0.1", "0177.0.0.1", "017700000001", "0x7f.1", "localhost", "LOCALHOST", "localhost.",
        "localhost.localdomain",
        "0.0.0.0", "0", "00000000", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]", "[::127.0.0.1]",
        "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]",
        "[::ffff:10.0.0.1]", "[fec0::1]", "[64:ff9b:1::a00:1]", "168.63.129.16",
        "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.1.1",
        "169.254.169.254",
        "169.254.170.2", "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "192.0.2.1",
        "203.0.113.7", "224.0.0.1",
        "239.255.255.250", "255.255.255.255", "240.0.0.1", "metadata.google.internal", "metadata",
        "kubernetes.default.svc",
        "user@127.0.0.1", "user:password@127.0.0.1", "8.8.8.8@127.0.0.1", "127.0.0.1%00", "ⓛocalhost",
        "\uff11\uff12\uff17.0.0.1", "127。0。0。1",
    ]  # fmt: skip
    urls = [f"http://{host}:{port}/a.png" for host in hosts]
    here = f"127.0.0.1:{port}"
    urls += [
        f"https://{here}/a.png",
        f"HTTP://{here}/",
        f"http://{here}?a",
        "http://",
        "http:///a",
        "https://",
    ]
    urls += [
        f"http://{here}#@8.8.8.8/",
        f"http://{here}\\@8.8.8.8/",
        "http://127.0.0.1:99999/",
        "http://[::1",
    ]
    return urls


@pytest.mark.parametrize("allowed", [False, True])
def test_internal_urls_reach_nothing(serve, allowed, monkeypatch):
    tried: list[tuple[str, int]] = []
    connect = socket.create_connection

    def connect_and_tell(address, *args, **settings):
        tried.append(address)
        return connect(address, *args, **settings)

    monkeypatch.setattr(socket, "create_connection", connect_and_tell)
    remote = RemoteImages(MEBIBYTE, seconds=5) if allowed else None
    with listener() as (port, reached), serve(sources=Sources(remote=remote)) as server:
        urls = internal_urls(port)
        assert len(urls) >= 70
        for url in urls:
            assert_error(server.ask(messages=[user("What?", url)]), 400)
        assert reached == []
        assert {f"http://{host}:{port}" for host, port in tried} <= {server.url}  # this test's own client


OWN = [ipaddress.ip_network("127.0.0.1/32")]  # stands for a public address in these tests


def redirect(location: str):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def test_an_image_from_the_web_is_the_same_as_in_a_data_url(serve):
    with (
        listener(give(png(1))) as (port, _),
        serve(sources=Sources(RemoteImages(MEBIBYTE, networks=OWN))) as server,
    ):
        url = f"http://127.0.0.1:{port}/a.png"
        answers = {
            server.text(messages=[user("What?", each)], temperature=0) for each in (url, data_url(png(1)))
        }
        assert len(answers) == 1


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{port}/",
        "http://localhost.:{port}/",
        "//[::1]:{port}/",
        "file:///etc/passwd",
        "http://10.0.0.1/",
    ],
)
def test_a_redirect_to_the_inside_is_not_followed(target):
    def resolve(host: str, port: int) -> list[str]:
        return {"localhost.": ["127.0.0.3"]}.get(host, [host])

    with listener() as (inner, reached), listener(redirect(target.format(port=inner))) as (port, _):
        with pytest.raises(RemoteImageError, match=r"public internet|only http"):
            RemoteImages(MEBIBYTE, networks=OWN, resolve=resolve).fetch(f"http://127.0.0.1:{port}/")
        assert reached == []


def test_redirects_come_to_an_end():
    with listener(redirect("/again")) as (port, reached):
        with pytest.raises(RemoteImageError, match="more than 3 redirects"):
            RemoteImages(MEBIBYTE, networks=OWN).fetch(f"http://127.0.0.1:{port}/")
        assert len(reached) == 4


def test_a_name_that_changes_its_meaning_is_asked_once():
    """What is looked at is what is connected to."""
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])
    with listener(give(b"image")) as (port, _):
        remote = RemoteImages(MEBIBYTE, networks=OWN, resolve=lambda *_: next(answers))
        assert remote.fetch(f"http://name.example:{port}/") == b"image"
        with pytest.raises(RemoteImageError, match="public internet"):
            remote.fetch(f"http://name.example:{port}/")
    with pytest.raises(RemoteImageError, match="public internet"):  # one inner address among others
        RemoteImages(MEBIBYTE, resolve=lambda *_: ["8.8.8.8", "10.0.0.1"]).fetch("http://name.example/")


@pytest.mark.parametrize("claimed", [{}, {"Content-Length": "5"}])
def test_what_is_too_large_or_too_slow_is_given_up(claimed):
    remote = RemoteImages(1000, seconds=0.5, networks=OWN)
    with (
        listener(give(bytes(2000))) as (port, _),
        pytest.raises(RemoteImageError, match="more than the 1,000 bytes"),
    ):
        remote.fetch(f"http://127.0.0.1:{port}/")

    def drip(handler: BaseHTTPRequestHandler) -> None:
        for _ in range(20):
            time.sleep(0.1)
            with suppress(OSError):
                handler.wfile.write(b"x")

    def drip_body(handler: BaseHTTPRequestHandler) -> None:
        give(b"x", **{"Content-Length": "100"})(handler)
        drip(handler)

    def drip_headers(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        drip(handler)

    for slow in (drip_body, drip_headers):
        with listener(slow) as (port, _), pytest.raises(RemoteImageError, match="too long"):
            remote.fetch(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("status", [404, 500])
def test_other_answers_are_no_images(status):
    with listener(lambda handler: handler.send_error(status)) as (port, _):
        url, remote = f"http://127.0.0.1:{port}/", RemoteImages(MEBIBYTE, networks=OWN)
        with pytest.raises(RemoteImageError, match=f"the server answered {status}"):
            remote.fetch(url)
    with pytest.raises(RemoteImageError, match="cannot be fetched"):  # nobody listens any more
        remote.fetch(url)


def send_images(server: Server, count: int) -> None:
    """Images, whole and damaged, over connections of their own; then everything is as it was."""

    def ask(number: int) -> None:
        content = png(number)
        with httpx.Client(base_url=server.url, timeout=120) as client:
            damaged = number % 5 == 0
            messages = [user("What?", data_url(content[:-300] if damaged else content))]
            body = {"model": "tiny", "max_tokens": 1, "messages": messages}
            assert client.post("/v1/chat/completions", json=body).status_code == (400 if damaged else 200)

    for number in range(30):  # until all threads of the server are there
        ask(number)
    descriptors = server.descriptors()
    for number in range(count):
        ask(number)
    for _ in range(100):  # until it has closed the last connection
        if server.descriptors() <= descriptors:
            break
        time.sleep(0.05)
    assert server.descriptors() <= descriptors


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.long)])
def test_images_leave_nothing_behind(own_process, served_folder, count):
    send_images(own_process, count)
    assert list(served_folder.iterdir()) == []


def test_limits_are_those_that_are_set(serve):
    with serve(limits=Limits(body_bytes=20_000, image_bytes=3000, image_pixels=900)) as server:
        cases = [
            ((24, 20), None),
            ((31, 30), "pixels; scale it down"),
            ((100, 9), "bytes, more than the 3,000"),
        ]
        for number, (size, words) in enumerate(cases):
            response = server.ask(messages=[user("What?", data_url(png(number, size)))])
            if words is None or (size == (100, 9) and len(png(number, size)) <= 3000):
                assert response.status_code == 200
            else:
                assert words in assert_error(response, 400)["message"]
        assert "20,000 bytes" in assert_error(server.ask(messages=[user("a" * 20_000)]), 413)["message"]
        limited = server.client.post("/v1/chat/completions", content=iter([b"a" * 9000] * 3), headers=JSON)
        assert_error(limited, 413)
