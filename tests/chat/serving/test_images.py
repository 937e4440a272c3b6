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


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(side: int) -> bytes:
    """A PNG that says it is a large square, and of which 100 MB are there, all zero."""
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000_000), 9)
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
    jpeg, gif, bmp = (saved((8, 8), kind) for kind in ("JPEG", "GIF", "BMP"))
    images = [
        png_bomb(60_000),
        png_with_text(400 * MEBIBYTE),
        jpeg_of_many_scans(),
        patched(jpeg, jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", 65_535, 65_535)),
        patched(gif, 6, struct.pack("<HH", 65_535, 65_535)),
        patched(bmp, 18, struct.pack("<ii", 60_000, 60_000)),
        saved((25_001, 1000), "PNG"),
        saved((60_000, 2), "PNG"),  # a line
        saved((5001, 5000), "WEBP", lossless=True, method=0),
        bytes(17 * MEBIBYTE),
    ]
    if "avif" in PIL.features.get_supported():
        avif = saved((8, 8), "AVIF")
        images.append(patched(avif, avif.index(b"ispe") + 8, struct.pack(">II", 60_000, 60_000)))
    for image in images:
        yield json.dumps({"model": "tiny", "messages": [user("What?", data_url(image))]}).encode()
    yield b'{"model": "tiny", "messages": "' + b"x" * 64 * MEBIBYTE + b'"}'
    yield b"[" * 31 * MEBIBYTE
    yield b'{"model": "tiny", "messages": [' + b'{"role": "user", "content": ""},' * 900_000 + b"0]}"
    yield b'{"model": "tiny", "messages": [{"role": "user", "content": "' + b"a b " * 7 * MEBIBYTE + b'"}]}'


@pytest.mark.slow
def test_bombs(own_process):
    """All of them are refused at little cost: of the server's own time, and of memory at its highest."""
    server = own_process
    golden = server.text(**GOLDEN)
    before = server.resident_bytes()
    server.forget_most()
    for content in bombs():
        started = server.cpu_seconds()
        assert_error(server.client.post("/v1/chat/completions", content=content, headers=JSON), 400, 413)
        cost = server.cpu_seconds() - started, server.most_resident_bytes() - before
        assert cost[0] < 1 and cost[1] < 200e6, (content[:200], cost)
    assert server.text(**GOLDEN) == golden


PATHS = [
    "/etc/passwd", "../../etc/passwd", "/etc/passwd\x00.png", "~/.ssh/id_rsa", "file:///etc/passwd",
    "FILE:///etc/passwd", "/proc/self/environ", "/dev/zero", "C:\\Windows\\win.ini", "//server/share/a.png",
    ".", "", "missing.png", "{canary}", "file://{canary}", "{canary}/../{name}", "link.png", "%2e%2e%2fetc%2fpasswd",
    "|cat /etc/passwd", "*.png", "data:text/plain;base64,L2V0Yy9wYXNzd2Q=", "\n/etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("allowed", [False, True])
def test_paths_reach_nothing(serve, tmp_path, allowed):
    """A readable image lies outside the folder that is allowed, with a link to it inside."""
    canary = tmp_path / "secret.png"
    canary.write_bytes(png(1))
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "link.png").symlink_to(canary)
    (folder / "mine.png").write_bytes(png(2))
    with serve(sources=Sources(folder=folder if allowed else None)) as server:
        for path in PATHS:
            url = path.format(canary=canary, name=canary.name)
            error = assert_error(server.ask(messages=[user("What?", url)]), 400)
            assert "root:" not in error["message"] and str(tmp_path) not in error["message"]
        for url in ("mine.png", f"file://{folder}/mine.png", str(folder / "mine.png")):
            assert server.ask(messages=[user("What?", url)]).status_code == (200 if allowed else 400)


INTERNAL = [  # ways to write this machine and its neighbours; all that resolve end at an address that is not public
    "127.0.0.1", "127.1", "127.255.255.254", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "LOCALHOST.",
    "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1]",
    "[fc00::1]", "[ff02::1]", "[fec0::1]", "[64:ff9b:1::a00:1]", "168.63.129.16", "10.0.0.1", "172.16.0.1",
    "192.168.0.1", "169.254.169.254", "100.64.0.1", "192.0.0.192", "198.18.0.1", "224.0.0.1", "255.255.255.255",
    "metadata.google.internal", "user@127.0.0.1", "127.0.0.1%00", "127。0。0。1",
]  # fmt: skip


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
        here = f"127.0.0.1:{port}"
        odd = [
            f"https://{here}/",
            f"http://{here}\\@8.8.8.8/",
            f"http://{here}#@8.8.8.8/",
            "http:///a",
            "http://[::1",
        ]
        for url in [*(f"http://{host}:{port}/a.png" for host in INTERNAL), *odd]:
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
    ["http://127.0.0.2:{port}/", "http://localhost.:{port}/", "//[::1]:{port}/", "file:///etc/passwd"],
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


def test_other_answers_are_no_images():
    with listener(lambda handler: handler.send_error(404)) as (port, _):
        url, remote = f"http://127.0.0.1:{port}/", RemoteImages(MEBIBYTE, networks=OWN)
        with pytest.raises(RemoteImageError, match="the server answered 404"):
            remote.fetch(url)
    with pytest.raises(RemoteImageError, match="cannot be fetched"):  # nobody listens any more
        remote.fetch(url)


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.long)])
def test_images_leave_nothing_behind(own_process, served_folder, count):
    """Images, whole and damaged, over connections of their own; then everything is as it was."""

    def ask(number: int) -> None:
        damaged = number % 5 == 0
        messages = [user("What?", data_url(png(number)[: -300 if damaged else None]))]
        with httpx.Client(base_url=own_process.url, timeout=120) as client:
            answer = Server(own_process.url, client, 0).ask(messages=messages, max_tokens=1)
        assert answer.status_code == (400 if damaged else 200)

    for number in range(30):  # until all threads of the server are there
        ask(number)
    descriptors = own_process.descriptors()
    for number in range(count):
        ask(number)
    for _ in range(100):  # until it has closed the last connection
        if own_process.descriptors() <= descriptors:
            break
        time.sleep(0.05)
    assert own_process.descriptors() <= descriptors and list(served_folder.iterdir()) == []


def test_limits_are_those_that_are_set(serve):
    with serve(limits=Limits(body_bytes=20_000, image_bytes=3000, image_pixels=900)) as server:
        assert server.ask(messages=[user("What?", data_url(png(0)))]).status_code == 200
        for content, words in [
            (png(1, (31, 30)), "pixels; scale it down"),
            (bytes(3001), "more than the 3,000"),
        ]:
            error = assert_error(server.ask(messages=[user("What?", data_url(content))]), 400)
            assert words in error["message"]
        assert "20,000 bytes" in assert_error(server.ask(messages=[user("a" * 20_000)]), 413)["message"]
        limited = server.client.post("/v1/chat/completions", content=iter([b"a" * 9000] * 3), headers=JSON)
        assert_error(limited, 413)
