"""A web server on this machine, for tests of images from the web."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def listener(answer=None) -> Iterator[tuple[int, list[str]]]:
    """A web server on every address of this machine: its port, and the requests that reached it."""
    reached: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reached.append(self.path)
            answer(self) if answer else self.send_error(404)

        def log_message(self, *args) -> None:
            pass

    with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running.server_port, reached
        finally:
            running.shutdown()
            thread.join()


def give(content: bytes, **headers: str):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer
