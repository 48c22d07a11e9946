"""A REST service with a real model store on a loopback port."""

import asyncio
import contextlib
import http.client
import json
import pathlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from bart_export.server import http_server, rest, serve
from bart_export.server.metrics import Metrics
from bart_export.server.model_store import ModelStore
from bart_export.server.options import ServeOptions
from bart_export.server.versions import ServedModel
from support.arithmetic import Arithmetic

MODEL = "/v1/models/m"
PREDICT, METRICS = f"{MODEL}:predict", "/monitoring/prometheus/metrics"
ROWS = json.dumps({"instances": [1, 2]}).encode()
ANSWER = {"predictions": [2.5, 3.0]}


class Answer:
    """A response with its body."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)


class RunningServer:
    """A running service; requests are sent unchanged."""

    def __init__(self, port, store, numbers):
        self.port = port
        self.store = store
        self.numbers = numbers

    def connection(self):
        return contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20))

    def ask(self, method, path, body=None, headers=None):
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        with self.connection() as connection:
            connection.request(method, path, body, headers or {})
            return Answer(connection.getresponse())

    def post(self, path, body, headers=None):
        return self.ask("POST", path, body, headers)

    def get(self, path):
        return self.ask("GET", path)


@contextlib.contextmanager
def served(store, options=None):
    """Serve a store's models over REST until the block ends."""
    options = options or ServeOptions()
    numbers = Metrics()
    server = http_server.RestServer(rest.app(store, options, numbers), options)
    with http_server.bound(options.host, 0) as sockets:
        thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        try:
            yield RunningServer(sockets[0].getsockname()[1], store, numbers)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@contextlib.contextmanager
def store_of(models, servables, options=None):
    """Return a store of some models.

    Args:
        models: the ServedModels.
        servables: (name, version) -> servable.
    """

    def find_versions(model):
        return {number: model.base_path / str(number) for name, number in servables
                if name == model.name}  # fmt: skip

    def open_version(model, number, path):
        return servables[model.name, number]

    store = ModelStore(open_version, options or ServeOptions(), find_versions)
    store.configure(models)
    try:
        yield store
    finally:
        store.stop()


@contextlib.contextmanager
def serving(servable=None, **options):
    """Serve a servable as version 1 of the model `m`, with the label `stable`."""
    path = pathlib.Path("/m")
    model = ServedModel(name="m", base_path=path, engine="tensorflow", labels={"stable": 1})
    settings = ServeOptions(**options)
    servables = {("m", 1): servable or Arithmetic()}
    with store_of([model], servables, settings) as store, served(store, settings) as server:
        yield server


@contextlib.contextmanager
def running(models, options):
    """Run the whole server, REST and gRPC, in a thread during a block."""
    started = Future()

    async def until_ended():
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        async with serve.serving(models, options) as server:
            started.set_result((server, lambda: loop.call_soon_threadsafe(ended.set)))
            await ended.wait()

    def give_up(outcome):
        if not started.done():
            started.set_exception(outcome.exception())

    with ThreadPoolExecutor(1) as executor:
        outcome = executor.submit(lambda: asyncio.run(until_ended()))
        outcome.add_done_callback(give_up)
        server, end = started.result()
        try:
            yield server
        finally:
            end()
            outcome.result()
