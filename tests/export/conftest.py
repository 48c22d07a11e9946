"""An HTTP server that answers with a status."""

import contextlib
import http.server
import threading

import pytest


@contextlib.contextmanager
def answering(status):
    """Answer HTTP requests with a status; yields the port and the requests."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append(f"{self.requestline}\r\n{self.headers}")
            ending = "Content-Length: 0\r\nConnection: close\r\n\r\n"
            self.wfile.write(f"HTTP/1.1 {status}\r\n{ending}".encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1], requests
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def http_answers():
    """Return `answering`."""
    return answering
