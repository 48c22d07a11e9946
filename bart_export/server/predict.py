"""What REST and gRPC share: a model's signature is run, its signatures and versions are described.

A front says which model and signature, and how the inputs are read once the signature is known.
Outputs are awaited without holding up the event loop.
"""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future

from bart_export.server import messages, servable
from bart_export.server.messages import Message
from bart_export.server.metrics import RUNTIMES, Metrics
from bart_export.server.models import ModelSpec, ModelStore
from bart_export.server.servable import Answer, Call, Lease, Limits, Servable, Tensors
from bart_export.server.status import Code, StatusError, invalid, status_of_error

DEFAULT_SIGNATURE = "serving_default"
NO_EXAMPLES = (
    "Classify, Regress and MultiInference are not served here: no signature of a BART model takes "
    "tf.Examples. Ask Predict."
)
# Work on more bytes than this would hold up the other requests of the event loop.
QUICK_BYTES = 16 * 1024
# Parsers hold Python's lock from begin to end. Two at a time would keep the event loop waiting for
# both, and be no quicker.
PARSING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The outputs of a signature, and the version of the model that computed them."""

    version: int
    signature: str
    outputs: Tensors


class Predictor:
    """Runs signatures of the models of a store. Requests are counted and timed here."""

    def __init__(self, store: ModelStore, metrics: Metrics) -> None:
        self.store = store
        self.metrics = metrics

    def counted(
        self, spec: ModelSpec, api: str, entrypoint: str
    ) -> contextlib.AbstractContextManager[None]:
        """Count and time a request; names that clients make up are not kept."""
        known = spec.name if spec.name in self.store.names() else ""
        return self.metrics.request(known, api, entrypoint)

    async def predict(
        self,
        spec: ModelSpec,
        signature_name: str,
        read: Callable[[Message], Tensors],
        size: int,
        limits: Limits,
        output_filter: Iterable[str] = (),
    ) -> Prediction:
        """Run a signature, "" for the default one, and return its outputs or those of a filter.

        `read` reads the inputs, `size` bytes of them, by the SignatureDef.

        Raises:
            StatusError: for whatever is wrong with the request, or what the servable says.
        """
        with self.store.lease(spec) as lease:
            name = signature_name or DEFAULT_SIGNATURE
            signature = chosen_signature(lease.servable, name)
            call = Call(
                signature=name,
                inputs=await run_off_loop(size, lambda: read(signature)),
                outputs=chosen_outputs(signature, output_filter),
                limits=limits,
            )
            served = self.store.served.get(spec.name)
            runtime = RUNTIMES[served.engine] if served else ""
            with self.metrics.timed(self.metrics.runtime_latency, spec.name, "Predict", runtime):
                return Prediction(lease.version, name, await run(lease, call))

    def signatures(self, spec: ModelSpec) -> tuple[int, Message]:
        """Return a model's version and its signatures, a SignatureDefMap."""
        with self.store.lease(spec) as lease:
            found = messages.SignatureDefMap(signature_def=lease.servable.signature_defs)
            version = lease.version
        for signature in found.signature_def.values():
            # TensorFlow Serving tells no defaults since version 2.20.
            signature.ClearField("defaults")
        return version, found

    def status(self, spec: ModelSpec) -> Message:
        """Return the states of a model's versions, a GetModelStatusResponse."""
        return messages.GetModelStatusResponse(
            model_version_status=[
                {
                    "version": status.version,
                    "state": status.state.value,
                    "status": {"error_code": status.code.value, "error_message": status.message},
                }
                for status in self.store.status(spec)
            ]
        )


def chosen_signature(servable: Servable, name: str) -> Message:
    """Return the SignatureDef of a signature."""
    if name not in servable.signature_defs:
        raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    return servable.signature_defs[name]


def check_inputs(signature: Message, given: Collection[str]) -> None:
    """Hold the names of a gRPC request's inputs to a signature that may have defaults.

    REST asks for every input, default or not, and `tensors.from_json` sees to that.
    """
    names, sent = set(signature.inputs), set(given)
    missing, unknown = names - sent - set(signature.defaults), sent - names
    if missing or unknown:
        raise invalid(
            f"Expected the inputs {{{listed(names)}}}, received {{{listed(sent)}}}. "
            f"Missing but required: {{{listed(missing)}}}. Unknown: {{{listed(unknown)}}}."
        )


def chosen_outputs(signature: Message, output_filter: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of the outputs that are wanted: those of the filter, or all of them."""
    chosen: list[str] = []
    for name in output_filter:
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {{{listed(signature.outputs)}}}."
            )
        if name in chosen:
            raise invalid(f"duplicate output tensor alias: {name}")
        chosen.append(name)
    return tuple(chosen) or tuple(sorted(signature.outputs))


def listed(names: Iterable[str]) -> str:
    """Return names in order, with commas between them."""
    return ",".join(sorted(names))


async def run(lease: Lease, call: Call) -> Tensors:
    """Run a signature and return its outputs; see `finished` for how it may end.

    What is generated from a text without a word is left out: the model would make it up.
    """
    signature, reader = lease.servable.signature_defs[call.signature], lease.servable.reader
    blank: list[int] = []
    if reader is not None and servable.generates_from_texts(call, signature):
        texts = call.inputs[servable.TEXT]
        size = sum(map(len, texts))
        blank = await run_off_loop(size, lambda: reader.blank_rows(texts, call.limits), alone=False)
    outputs = await finished(lease.keep(lease.servable.submit(call)), call.limits)
    return servable.blanked(outputs, blank) if blank else outputs


async def run_off_loop(size: int, work: Callable[[], Answer], *, alone: bool = True) -> Answer:
    """Do some work on `size` bytes, in a thread if they are many, and then as the only one."""

    def in_turn() -> Answer:
        with PARSING if alone else contextlib.nullcontext():
            return work()

    return await asyncio.to_thread(in_turn) if size > QUICK_BYTES else work()


async def finished(future: "Future[Answer]", limits: Limits) -> Answer:
    """Await what a servable works on, on the running event loop.

    When the awaiting task is cancelled, because the client has disconnected, or the deadline
    passes, the work is asked to stop and not awaited. The future itself is never cancelled.
    """
    outcome = asyncio.wrap_future(future)
    # asyncio logs an error that nobody has looked at, as of work that goes on alone.
    outcome.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    try:
        if not (await asyncio.wait([outcome], timeout=limits.remaining()))[0]:
            raise TimeoutError
        return outcome.result()
    except Exception as error:
        raise status_of_error(error) from error
    finally:
        limits.stop.set()
