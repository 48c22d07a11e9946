"""Streaming: from a text to server-sent events, token by token.

`token` events bring pieces of the text as soon as they are certain, `done` what the whole
generation gave, `error` what went wrong after the first event. Before the first event an error is
an ordinary one. The format is that of the HTML standard, section 9.2 (Server-sent events); it is
written here because a library for it would watch for the client and the server's end once more.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Future
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bart_export.runtime.results import Result
from bart_export.server.options import MAX_BEAMS
from bart_export.server.predict import status_of
from bart_export.server.servable import TIMED_OUT, Lease, Limits, Remarks, StreamCall
from bart_export.server.status import Code, StatusError, invalid

# Parameters that say how many rows of a decoder are computed.
ROWS = ("num_beams", "num_return_sequences")


async def stream(lease: Lease, body: Any, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Generate from a text and yield the events.

    Ending the iteration, by closing or cancelling it, stops the work before its next token.

    Args:
        lease: of the servable; it is to last for as long as the iteration goes on.
        body: a JSON value: the text under `text`, and fields of `GenerationConfig`.
        limits: the deadline; its `stop` is set here.
    """
    text, parameters = text_and_parameters(body)
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[tuple[str, int] | None] = asyncio.Queue()

    def arrive(item: tuple[str, int] | None) -> None:
        # The loop may be closed by the time that work nobody waits for ends.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    def emit(piece: str, tokens: int) -> None:
        arrive((piece, tokens))

    def ended(_: "Future[Result]") -> None:
        arrive(None)

    try:
        call = StreamCall(text=text, parameters=parameters, emit=emit, limits=limits)
        future = lease.keep(lease.servable.stream(call))
        future.add_done_callback(ended)
        while (item := await asyncio.wait_for(arrived.get(), limits.remaining())) is not None:
            yield event_bytes("token", {"text": item[0], "tokens": item[1]})
        yield event_bytes("done", summary(future.result(), limits.remarks))
    except asyncio.TimeoutError:
        raise StatusError(Code.DEADLINE_EXCEEDED, TIMED_OUT) from None
    except Exception as error:
        raise status_of(error) from error
    finally:
        limits.stop.set()


def text_and_parameters(body: Any) -> tuple[str, dict[str, Any]]:
    """Return the text of a body, and the parameters beside it."""
    parameters = dict(body) if isinstance(body, dict) else {}
    text = parameters.pop("text", None)
    if not isinstance(text, str):
        raise invalid(
            "Expecting an object with the source text, a string, under 'text' and, optionally, "
            "generation parameters under their names"
        )
    for name in ROWS:
        value = parameters.get(name)
        if isinstance(value, (int, float)) and value > MAX_BEAMS:
            raise invalid(f"{name} must be at most {MAX_BEAMS}, received {value}.")
    return text, parameters


def summary(result: Result, remarks: Remarks) -> dict[str, Any]:
    """Return what the last event says of a generation; texts and scores are best first.

    `truncated` says that no more than a beginning of the text was read, `source_tokens` long, and
    `empty` that there was no word to generate from.
    """
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


def event_bytes(name: str, data: Mapping[str, Any]) -> bytes:
    """Return one event. JSON has no line breaks outside its strings, so one data line is enough."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class EventResponse(StreamingResponse):
    """A response of events, the first of which is there; an error on the way becomes the last."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        self.events = events_of(first, rest)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self.events, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send each event as soon as there is one; whatever ends this ends the generation."""
        async with contextlib.aclosing(self.events):
            await self.stream_response(send)


async def events_of(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield the events of a response."""
    async with contextlib.aclosing(rest):
        try:
            yield first
            async for event in rest:
                yield event
        except StatusError as error:
            yield event_bytes("error", {"error": error.message})
