"""A directory behind HTTP as `python -m http.server` serves it, without range requests."""

import contextlib
import http.server
import threading
from base64 import b64encode
from urllib.parse import urlsplit


class Files:
    """The files of a directory, for a user with a password or for its bearer in `?token=`."""

    def __init__(self, directory, user, password):
        self.directory = directory
        self.basic = f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
        self.query = f"token={password}"
        self.address = ""
        # Names of files; a long one has 64 MiB more, and a circular one is redirected to itself.
        self.missing = self.long = self.circular = ""
        self.sent = []  # paths of files that were sent completely

    def url(self, user="", query=""):
        """Return the URL of the directory."""
        return f"http://{user}{self.address}{query}"


class Handler(http.server.SimpleHTTPRequestHandler):
    files: Files

    def log_message(self, *unused):
        pass

    def do_HEAD(self):
        self.answer(super().do_HEAD)

    def do_GET(self):
        self.answer(super().do_GET)

    def answer(self, send):
        parts, files = urlsplit(self.path), self.files
        if self.headers.get("Authorization") != files.basic and parts.query != files.query:
            self.send_error(401)
        elif parts.path == f"/{files.missing}":
            self.send_error(404)
        elif parts.path == f"/{files.circular}":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
        elif parts.path == f"/{files.long}":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has enough
                for _ in range(64):
                    self.wfile.write(bytes(1 << 20))
                files.sent.append(parts.path)
        else:
            files.sent.append(parts.path)
            send()


@contextlib.contextmanager
def serving(files):
    """Serve files while a block runs; yield them."""

    def handler(*arguments):
        kind = type("FilesHandler", (Handler,), {"files": files})
        return kind(*arguments, directory=files.directory)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    files.address = f"127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
