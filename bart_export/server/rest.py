"""The REST front: from HTTP requests to methods of models, and back.

Addresses and errors are TensorFlow Serving's; beside them stand the metrics and a page for a
browser. Bodies are bounded, and a request ends when its time is over or its client has gone, which
stops the work for it. A body is read as far as it can be without the model, then the model is
looked up, then its signature, then the rest of the body.
"""

import asyncio
import contextlib
import functools
import json
import pathlib
import re
import secrets
import time
import urllib.parse
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from bart_export.errors import ConfigurationError
from bart_export.server import events, json_body, metrics
from bart_export.server.admission import Admission
from bart_export.server.grpc_services import NO_EXAMPLES, model_metadata, model_status
from bart_export.server.messages import MonitoringConfig, read_text
from bart_export.server.metrics import Metrics
from bart_export.server.models import ModelSpec, ModelStore
from bart_export.server.options import MAX_GZIP_MEMBERS, ServeOptions
from bart_export.server.predict import Predictor, aside, status_of
from bart_export.server.servable import TIMED_OUT, Limits
from bart_export.server.status import HTTP_STATUS, Code, StatusError, invalid

# The verbs that TensorFlow Serving's transport lets through, though its handler answers but three.
VERBS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")
MODEL = r"/v1/models/(?P<name>[^/:]+)"
CHOICE = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
# Letters of either case fit, but methods have only the names of `Methods`.
ADDRESSES = {
    "POST": re.compile(f"{MODEL}{CHOICE}:(?P<method>[a-z]+)", re.IGNORECASE),
    "GET": re.compile(f"/v1/models(?:/(?P<name>[^/:]+))?{CHOICE}(?:/(?P<method>metadata))?", re.I),
}
SERVICE = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)
METRICS_PATH = "/monitoring/prometheus/metrics"
PAGE = pathlib.Path(__file__).with_name("page.html")
# A client that does not take the end of its answer is cut off this long after its time is over.
SENDING_SECONDS = 5.0
JSON = "application/json"
MAX_INT64 = 2**63 - 1
Method = Callable[[ModelSpec, bytes, Limits], Awaitable[Response]]


def app(store: ModelStore, options: ServeOptions, numbers: Metrics) -> ASGIApp:
    """Return the REST service of a store's models as an ASGI application."""
    return Admission(Router(default=Service(store, options, numbers)), options)


class Service:
    """An ASGI application that answers one HTTP request at a call."""

    def __init__(self, store: ModelStore, options: ServeOptions, numbers: Metrics) -> None:
        self.store = store
        self.options = options
        self.numbers = numbers
        self.methods = Methods(store, numbers)
        self.metrics_path = metrics_path(options.monitoring_config_file)
        self.page = PAGE.read_text(encoding="utf-8") if options.page else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or give up once its client has gone."""
        if scope["type"] != "http":
            return
        seconds = self.options.request_seconds
        limits = Limits(deadline=time.monotonic() + seconds)
        request = Request(scope, receive)
        try:
            body = b""
            if request.method == "POST":
                body = await asyncio.wait_for(
                    read_body(request, self.options.max_request_bytes), seconds
                )
        except ClientDisconnect:
            return
        except Exception as error:
            response = error_response(error)
            if isinstance(error, asyncio.TimeoutError):
                response.headers["Connection"] = "close"  # the rest may never come
            await response(scope, receive, send)
            return
        await while_connected(
            receive, self.respond(request, body, limits, send), seconds + SENDING_SECONDS
        )

    async def respond(self, request: Request, body: bytes, limits: Limits, send: Send) -> None:
        """Make the answer to a request and send it."""
        try:
            response = await self.response(request, body, limits)
        except Exception as error:
            response = error_response(error)
        await response(request.scope, request.receive, send)

    async def response(self, request: Request, body: bytes, limits: Limits) -> Response:
        """Return the answer to a request."""
        verb, address = request.method, uri(request)
        if address.partition("?")[0] == self.metrics_path:
            return self.metrics(address)
        if verb not in VERBS:
            raise HTTPException(501, f"Unknown method: {verb}")
        if address == "/" and verb in ("GET", "HEAD") and self.page is not None:
            return page(self.page, [described(self.store, name) for name in self.store.names()])
        if not SERVICE.fullmatch(address):
            raise HTTPException(404, f"Not found: {verb} {address}")
        found = ADDRESSES[verb].fullmatch(address) if verb in ADDRESSES else None
        method = found and self.methods.named(verb, found["method"])
        if not found or not method:
            raise invalid(f"Malformed request: {verb} {address}")
        if found["name"] is None:
            raise invalid("Missing model name in request.")
        return await method(model_spec(found), body, limits)

    def metrics(self, address: str) -> Response:
        """Return what Prometheus reads, at exactly its address."""
        if address != self.metrics_path:
            text = f"Unexpected path: {address}. Should be {self.metrics_path}"
            return Response(text, 400, media_type=metrics.CONTENT_TYPE)
        return Response(self.numbers.exposition(), media_type=metrics.CONTENT_TYPE)


def uri(request: Request) -> str:
    """Return what TensorFlow Serving compares addresses with: path and query, not decoded."""
    path = request.scope["raw_path"].decode("latin-1")
    query = request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def model_spec(found: re.Match[str]) -> ModelSpec:
    """Return the model that an address names, with what stands for other bytes decoded."""
    digits = found["version"] and found["version"].lstrip("0")
    if digits and int(digits[:20]) > MAX_INT64:
        raise invalid(f"Failed to convert version: {found['version']} to numeric.")
    return ModelSpec(
        urllib.parse.unquote(found["name"]),
        None if digits is None else int(digits or 0),
        None if found["label"] is None else urllib.parse.unquote(found["label"]),
    )


async def read_body(request: Request, limit: int) -> bytes:
    """Return a request's body, decompressed."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    if "gzip" in request.headers.get("content-encoding", ""):
        return await aside(len(body), functools.partial(decompressed, bytes(body), limit))
    return bytes(body)


def decompressed(body: bytes, limit: int) -> bytes:
    """Return what the members of a gzip file hold; see `read_body`.

    Each member costs a copy of the rest of the body, hence a bound on their number.
    """
    whole = b""
    try:
        for _ in range(MAX_GZIP_MEMBERS):
            member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            whole += member.decompress(body, limit + 1 - len(whole))
            if len(whole) > limit:
                raise too_large(limit)
            if not member.eof:
                raise zlib.error("it ends too early")
            body = member.unused_data
            if not body:
                return whole
        raise zlib.error(f"it has more than {MAX_GZIP_MEMBERS} members")
    except zlib.error as error:
        raise invalid(f"The body should be compressed by gzip: {error}") from None


def too_large(limit: int) -> HTTPException:
    """Return the error for a body beyond the limit."""
    return HTTPException(
        413, f"A request may have {limit} bytes (--max-request-bytes), this one has more"
    )


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, None], seconds: float
) -> None:
    """Do some work as long as the client is there, and for some seconds at most."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = (asyncio.ensure_future(work), asyncio.ensure_future(gone()))
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if not tasks[0].cancelled():
        tasks[0].result()


def error_response(error: Exception) -> Response:
    """Return how a client is told of an error: its HTTP status, and its text as JSON."""
    if isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
    elif isinstance(error, asyncio.TimeoutError):
        status, message = HTTP_STATUS[Code.DEADLINE_EXCEEDED], TIMED_OUT
    else:
        told = status_of(error)
        status, message = HTTP_STATUS[told.code], told.message
    return Response(json_body.error(message), status, media_type=JSON)


def described(store: ModelStore, name: str) -> dict[str, Any]:
    """Return what the page is told of a model: whether it streams, how many tokens it reads."""
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


def page(template: str, models: list[dict[str, Any]]) -> Response:
    """Return the page for a browser, which can load nothing and reach no other server."""
    nonce = secrets.token_urlsafe(16)
    # A "<" would end the element that holds the names.
    listed = json.dumps(models).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return Response(
        template.replace("{nonce}", nonce).replace("{models}", listed),
        media_type="text/html",
        headers={
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


def metrics_path(config_file: pathlib.Path | None) -> str | None:
    """Return where Prometheus finds the metrics."""
    if config_file is None:
        return METRICS_PATH
    try:
        config = read_text(config_file, MonitoringConfig)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{config_file} should hold a MonitoringConfig as a text proto: {error}"
        ) from None
    prometheus = config.prometheus_config
    return (prometheus.path or METRICS_PATH) if prometheus.enable else None


class Methods:
    """What a model can be asked for: from its name and a body to a response."""

    def __init__(self, store: ModelStore, numbers: Metrics) -> None:
        self.predictor = Predictor(store, numbers)
        self.table: dict[tuple[str, str | None], Method] = {
            ("GET", None): self.status,
            ("GET", "metadata"): self.metadata,
            ("POST", "predict"): self.predict,
            ("POST", "generate"): self.generate,
            ("POST", "classify"): unserved,
            ("POST", "regress"): unserved,
        }

    def named(self, verb: str, name: str | None) -> Method | None:
        """Return the method of a verb and a name, None if there is no such method."""
        # An address that ends in a name which is none, as /METADATA, asks for the status.
        return self.table.get((verb, name), self.status if verb == "GET" else None)

    async def predict(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Run a signature."""
        with self.predictor.counted(spec, "predict", "REST"):
            parsed = await aside(len(body), lambda: json_body.parse(body))
            most = self.predictor.store.options.max_request_rows
            answer = await self.predictor.predict(
                spec,
                parsed.signature_name,
                lambda signature: json_body.tensors(parsed, signature.inputs, most),
                len(body),
                limits,
            )
            outputs = answer.outputs
            text = await aside(
                sum(array.nbytes for array in outputs.values()),
                lambda: json_body.predictions(outputs, row_format=parsed.by_row),
                alone=False,
            )
            return json_answer(text, limits.remarks.headers())

    async def status(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Tell of the states of a model's versions."""
        return json_answer(json_body.model_status(model_status(self.predictor.store, spec)))

    async def metadata(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Tell of a model's signatures."""
        return json_answer(json_body.model_metadata(model_metadata(self.predictor.store, spec)))

    async def generate(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Generate from a text; the answer are events, the first of which is there already."""
        rest = self.generation(spec, body, limits)
        return events.EventResponse(await anext(rest), rest)

    async def generation(
        self, spec: ModelSpec, body: bytes, limits: Limits
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events of a generation."""
        with self.predictor.counted(spec, "generate", "REST"):
            document: Any = await aside(len(body), lambda: json_body.document(body))
            with self.predictor.store.lease(spec) as lease:
                async with contextlib.aclosing(events.stream(lease, document, limits)) as stream:
                    async for event in stream:
                        yield event


async def unserved(spec: ModelSpec, body: bytes, limits: Limits) -> Response:
    """Refuse a method that takes examples."""
    raise HTTPException(404, NO_EXAMPLES)


def json_answer(body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response of JSON."""
    return Response(body, media_type=JSON, headers=headers)
