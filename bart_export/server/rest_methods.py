"""What a model can be asked for over REST: a model's name and a body go in, a response comes out.

The body is read as far as it can be without the model, then the model is looked up, then its
signature, then the rest of the body.
"""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bart_export.server import events, json_body, messages
from bart_export.server.grpc_services import (
    NO_EXAMPLES,
    SIGNATURE_DEF,
    ModelService,
    PredictionService,
)
from bart_export.server.metrics import Metrics
from bart_export.server.models import ModelSpec, ModelStore
from bart_export.server.predict import Predictor, aside
from bart_export.server.servable import Limits
from bart_export.server.status import StatusError

JSON = "application/json"
Method = Callable[[ModelSpec, bytes, Limits], Awaitable[Response]]


class RestMethods:
    """The methods of the models of a store."""

    def __init__(self, store: ModelStore, numbers: Metrics) -> None:
        self.predictor = Predictor(store, numbers)
        # What REST and gRPC tell of models is the same, but for its wrapping.
        self.prediction_service = PredictionService(self.predictor)
        self.model_service = ModelService(store, numbers)
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
        request = messages.GetModelStatusRequest(model_spec=message(spec))
        answer = await self.model_service.get_model_status(request, limits)
        return json_answer(json_body.model_status(answer))

    async def metadata(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Tell of a model's signatures."""
        request = messages.GetModelMetadataRequest(
            model_spec=message(spec), metadata_field=[SIGNATURE_DEF]
        )
        answer = await self.prediction_service.get_model_metadata(request, limits)
        return json_answer(json_body.model_metadata(answer))

    async def generate(self, spec: ModelSpec, body: bytes, limits: Limits) -> Response:
        """Generate from a text; the answer are events, the first of which is there already."""
        rest = self.generation(spec, body, limits)
        return EventResponse(await anext(rest), rest)

    async def generation(
        self, spec: ModelSpec, body: bytes, limits: Limits
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events of a generation."""
        with self.predictor.counted(spec, "generate", "REST"):
            document: Any = await aside(len(body), lambda: json_body.document(body))
            with self.predictor.held(spec) as holder:
                async with contextlib.aclosing(events.stream(holder, document, limits)) as stream:
                    async for event in stream:
                        yield event


async def unserved(spec: ModelSpec, body: bytes, limits: Limits) -> Response:
    """Refuse a method that takes examples."""
    raise HTTPException(404, NO_EXAMPLES)


class EventResponse(Response):
    """A response of server-sent events, each sent as soon as there is one."""

    media_type = events.CONTENT_TYPE

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.first = first
        self.rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; an error on the way becomes its last event."""
        async with contextlib.aclosing(self.rest):
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await send_part(send, self.first)
            try:
                async for event in self.rest:
                    await send_part(send, event)
            except StatusError as error:
                await send_part(send, events.error_event(error))
            await send({"type": "http.response.body"})


async def send_part(send: Send, data: bytes) -> None:
    """Send a part of a body that is not the last."""
    await send({"type": "http.response.body", "body": data, "more_body": True})


def json_answer(body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response of JSON."""
    return Response(body, media_type=JSON, headers=headers)


def message(spec: ModelSpec) -> Any:
    """Return a ModelSpec as the message of that name."""
    version = None if spec.version is None else messages.Int64Value(value=spec.version)
    return messages.ModelSpec(name=spec.name, version=version, version_label=spec.label)
