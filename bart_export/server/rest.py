"""TensorFlow Serving's REST service: routes, request bodies, event streams, metrics and the page.

`json_tensors` converts bodies to tensors and outputs to JSON. Request bodies are bounded. A request
is cancelled at its deadline or when its client disconnects.
"""

import asyncio
import contextlib
import functools
import json
import pathlib
import re
import secrets
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from bart_export.errors import shown
from bart_export.runtime.results import Result
from bart_export.server import json_tensors, messages
from bart_export.server.http_server import JSON, error_answer, json_answer
from bart_export.server.metrics import CONTENT_TYPE, Metrics
from bart_export.server.model_store import ModelSpec, ModelStore
from bart_export.server.options import MAX_BEAMS, ServeOptions
from bart_export.server.predict import (
    DEFAULT_SIGNATURE,
    NO_EXAMPLES,
    Predictor,
    run_off_loop,
    signature_def,
)
from bart_export.server.servable import Call, Limits, Remarks
from bart_export.server.status import Code, StatusError, invalid

METRICS_PATH = "/monitoring/prometheus/metrics"
PAGE = pathlib.Path(__file__).with_name("page.html")
VERSION = re.compile("[0-9]{1,19}")
# Parameters that multiply the rows of the decoder.
ROWS = ("num_beams", "num_return_sequences")
Method = Callable[[ModelSpec, bytes, Limits], Awaitable[Response]]


def app(store: ModelStore, options: ServeOptions, metrics: Metrics) -> Starlette:
    """Return the REST service of a model store as an ASGI application."""
    service = Service(store, options, metrics)
    methods: tuple[tuple[str, str, Method], ...] = (
        ("GET", "", service.status),
        ("GET", "/metadata", service.metadata),
        ("POST", ":predict", service.predict),
        ("POST", ":generate", service.generate),
        ("POST", ":{method}", service.unserved),
    )
    routes = [
        Route(f"/v1/models/{{name}}{choice}{ending}", service.endpoint(method), methods=[verb])
        for choice in ("", "/versions/{version}", "/labels/{label}")
        for verb, ending, method in methods
    ]
    routes.append(Route(METRICS_PATH, service.metrics))
    if options.page:
        routes.append(Route("/", service.page))
    handlers = dict.fromkeys((HTTPException, Exception), error_of_route)
    service_app = Starlette(routes=routes, exception_handlers=handlers)
    service_app.router.redirect_slashes = False
    return service_app


async def error_of_route(request: Request, error: Exception) -> Response:
    """Answer a request that has no route or fails outside a method."""
    if isinstance(error, HTTPException):
        error.detail += f": {request.method} {request.url.path}"
    return error_answer(error)


class Service:
    """The endpoints; a `Method` takes a model, a request body and the call's limits."""

    def __init__(self, store: ModelStore, options: ServeOptions, metrics: Metrics) -> None:
        self.store = store
        self.options = options
        self.predictor = Predictor(store, metrics)
        self.template = PAGE.read_text(encoding="utf-8")

    def endpoint(self, method: Method) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a method, which is cancelled if the client disconnects."""

        async def answer(request: Request) -> Response:
            seconds = self.options.request_seconds
            limits = Limits(deadline=time.monotonic() + seconds)
            body = read_body(request, self.options.max_request_bytes)
            try:
                content = await asyncio.wait_for(body, seconds)
                work = asyncio.ensure_future(method(model_spec(request), content, limits))
                # After the body, the next message is the disconnect.
                disconnect = asyncio.ensure_future(request.receive())
                disconnect.add_done_callback(lambda _: work.cancel())
                try:
                    return await work
                finally:
                    disconnect.cancel()
            except (asyncio.CancelledError, ClientDisconnect):
                # The client has disconnected, or the server is stopping.
                return error_answer(StatusError(Code.UNAVAILABLE, "The server is stopping"))
            except Exception as error:  # the reason is the answer, whatever it is
                return error_answer(error)

        return answer

    async def predict(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Run a signature."""
        with self.predictor.counted(spec, "predict", "REST"):
            document = await run_off_loop(len(body), lambda: json_tensors.parse(body))
            if not isinstance(document, dict):
                received = json_tensors.described(document)
                raise invalid(f"Expected the body to be a JSON object, received {received}")
            name = document.get("signature_name", "")
            if not isinstance(name, str):
                raise invalid(f"Expected 'signature_name' to be a string, received {shown(name)}")
            name, most = name or DEFAULT_SIGNATURE, self.options.max_request_rows
            with self.store.lease(spec) as lease:
                signature = signature_def(lease.servable, name)
                inputs = await run_off_loop(
                    len(body), lambda: json_tensors.to_inputs(document, signature.inputs, most)
                )
                names = tuple(sorted(signature.outputs))
                call = Call(signature=name, inputs=inputs, outputs=names, limits=limits)
                outputs = await self.predictor.predict(spec, lease, call)
            text = await run_off_loop(
                sum(array.nbytes for array in outputs.values()),
                lambda: json_tensors.from_outputs(outputs, by_row="instances" in document),
            )
            return Response(text, headers=limits.remarks.headers(), media_type=JSON)

    async def status(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Return the states of a model's versions."""
        return json_answer(messages.to_dict(self.predictor.status(spec)))

    async def metadata(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Return a model's signatures."""
        version, signatures = self.predictor.signatures(spec)
        return json_answer(
            {
                "model_spec": {"name": spec.name, "signature_name": "", "version": str(version)},
                "metadata": {"signature_def": messages.to_dict(signatures)},
            }
        )

    async def unserved(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Refuse an unknown method."""
        raise StatusError(Code.NOT_FOUND, f"Expected the method predict or generate. {NO_EXAMPLES}")

    async def generate(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Generate from a text and return a stream of events."""
        events = self.events(spec, body, limits)
        first = await anext(events)  # an error before the first event is an ordinary response
        return StreamingResponse(
            with_error(first, events),
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            media_type="text/event-stream",
        )

    async def events(
        self, spec: ModelSpec, body: bytes, limits: Limits
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events of a generation; closing the iterator stops it before the next token.

        `token` events have final pieces of the text; the `done` event has the whole result.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[str, int] | None] = asyncio.Queue()

        def put(piece: tuple[str, int] | None) -> None:
            # The loop may be closed when abandoned work ends.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        with self.predictor.counted(spec, "generate", "REST"):
            document = await run_off_loop(len(body), lambda: json_tensors.parse(body))
            text, parameters = text_and_parameters(document)
            with self.store.lease(spec) as lease:
                try:
                    work = lease.servable.stream(
                        text, parameters, lambda piece, tokens: put((piece, tokens)), limits
                    )
                    future = lease.keep(work)
                    future.add_done_callback(lambda _: put(None))
                    while piece := await asyncio.wait_for(pieces.get(), limits.remaining()):
                        yield event_bytes("token", {"text": piece[0], "tokens": piece[1]})
                    yield event_bytes("done", summary(future.result(), limits.remarks))
                finally:
                    limits.stop.set()

    def metrics(self, request: Request) -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(self.predictor.metrics.exposition(), media_type=CONTENT_TYPE)

    def page(self, request: Request) -> Response:
        """Return the page, which may connect only to this server."""
        nonce = secrets.token_urlsafe(16)
        models = json.dumps([page_model(self.store, name) for name in self.store.served])
        page = self.template.replace("{nonce}", nonce)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        return Response(
            # A "</script>" in a name would end the element.
            page.replace("{models}", models.replace("<", "\\u003c")),
            media_type="text/html",
            headers={
                "Content-Security-Policy": policy,
                "Cache-Control": "no-store",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )


def model_spec(request: Request) -> ModelSpec:
    """Return the model, version and label of a path."""
    version: str | None = request.path_params.get("version")
    if version is not None and not VERSION.fullmatch(version):
        raise invalid(f"Expected a version of at most 19 digits, received {shown(version)}")
    return ModelSpec(
        name=request.path_params["name"],
        version=None if version is None else int(version),
        label=request.path_params.get("label"),
    )


async def read_body(request: Request, limit: int) -> bytes:
    """Return a request's decompressed body."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    if "gzip" in request.headers.get("content-encoding", ""):
        return await run_off_loop(len(body), functools.partial(decompressed, bytes(body), limit))
    return bytes(body)


def decompressed(body: bytes, limit: int) -> bytes:
    """Decompress a gzip file with one member."""
    member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        content = member.decompress(body, limit + 1)
        if len(content) > limit:
            raise too_large(limit)
        if not member.eof or member.unused_data:
            raise zlib.error("it is not one complete file")
    except zlib.error as error:
        raise invalid(
            f"Expected a body compressed with gzip, received invalid data: {error}"
        ) from None
    return content


def too_large(limit: int) -> HTTPException:
    """Return the error for a body over the limit."""
    return HTTPException(
        413, f"Expected at most {limit} bytes (--max-request-bytes), received a larger request"
    )


def text_and_parameters(body: object) -> tuple[str, dict[str, object]]:
    """Return the text and the generation parameters of a body."""
    parameters = dict(body) if isinstance(body, dict) else {}
    text = parameters.pop("text", None)
    if not isinstance(text, str):
        raise invalid(
            "Expected an object with 'text', a string, and optional generation parameters"
        )
    for name in ROWS:
        value = parameters.get(name)
        if isinstance(value, (int, float)) and value > MAX_BEAMS:
            raise invalid(f"{name} must be at most {MAX_BEAMS}, received {value}.")
    return text, parameters


def summary(result: Result, remarks: Remarks) -> dict[str, object]:
    """Return the data of the `done` event, with texts and scores best first."""
    return {
        "generated_text": [sequence.text for sequence in result.sequences],
        "scores": [sequence.score for sequence in result.sequences],
        "tokens": result.timings.tokens,
        "source_tokens": len(result.source_token_ids),
        "truncated": bool(remarks.truncated),
        "empty": bool(remarks.empty),
        "seconds": round(result.timings.encode + result.timings.decode, 6),
        "tokens_per_second": round(result.timings.tokens_per_second, 3),
    }


def event_bytes(name: str, data: Mapping[str, object]) -> bytes:
    """Return a server-sent event (HTML standard, section 9.2) with one line of JSON data."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def with_error(
    first: bytes, rest: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """Yield all events; an error becomes the last one."""
    yield first
    try:
        async for event in rest:
            yield event
    except StatusError as error:
        yield event_bytes("error", {"error": error.message})


def page_model(store: ModelStore, name: str) -> dict[str, object]:
    """Return the page's description of a model; `longest` is the limit of source tokens."""
    try:
        with store.lease(ModelSpec(name)) as lease:
            servable = lease.servable
            longest = servable.reader.longest if servable.reader else None
            counts = longest is not None and "tokenize" in servable.signature_defs
            return {
                "name": name, "streams": servable.streams, "longest": longest, "counts": counts
            }  # fmt: skip
    except StatusError:  # no version is available
        return {"name": name, "streams": True, "longest": None, "counts": False}
