"""The part of a request that REST and gRPC share: run a signature, or describe a model.

Nothing here blocks the event loop.
"""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future

from bart_export.server import messages
from bart_export.server.messages import Message
from bart_export.server.metrics import RUNTIMES, Metrics
from bart_export.server.model_store import ModelSpec, ModelStore
from bart_export.server.servable import Answer, Call, Lease, Limits, Servable, Tensors
from bart_export.server.status import Code, StatusError, invalid

DEFAULT_SIGNATURE = "serving_default"
TEXT, GENERATED = "text", "generated_text"
TOKENIZER_SIGNATURES = ("tokenize", "detokenize")  # these do not run the model
NO_EXAMPLES = (
    "Classify, Regress and MultiInference are not supported: no signature of a BART model takes "
    "tf.Examples. Use Predict."
)
# Work on more bytes would delay the other requests on the event loop.
QUICK_BYTES = 16 * 1024
# Parsers hold the GIL throughout. Two at a time would be no faster, and would block the event loop
# for twice as long.
CONVERTING = threading.Lock()


class Predictor:
    """Runs the signatures of a store's models, and counts and times requests."""

    def __init__(self, store: ModelStore, metrics: Metrics) -> None:
        self.store = store
        self.metrics = metrics

    def counted(
        self, spec: ModelSpec, api: str, entrypoint: str
    ) -> contextlib.AbstractContextManager[None]:
        """Count and time a request as `Metrics.request` does."""
        known = spec.name if spec.name in self.store.served else ""
        return self.metrics.request(known, api, entrypoint)

    async def predict(self, spec: ModelSpec, lease: Lease, call: Call) -> Tensors:
        """Run a signature of a leased model and return its outputs."""
        served = self.store.served.get(spec.name)
        runtime = RUNTIMES[served.engine] if served else ""
        with self.metrics.timed(self.metrics.runtime_latency, spec.name, "Predict", runtime):
            return await run(lease, call)

    def signatures(self, spec: ModelSpec) -> tuple[int, Message]:
        """Return a model's version and its signatures as a SignatureDefMap."""
        with self.store.lease(spec) as lease:
            found = messages.SignatureDefMap(signature_def=lease.servable.signature_defs)
            version = lease.version
        for signature in found.signature_def.values():
            # TensorFlow Serving has not returned defaults since version 2.20.
            signature.ClearField("defaults")
        return version, found

    def status(self, spec: ModelSpec) -> Message:
        """Return the status of a model's versions as a GetModelStatusResponse."""
        return messages.GetModelStatusResponse(
            model_version_status=[
                {
                    "version": version.number,
                    "state": version.state.value,
                    "status": {"error_code": version.code.value, "error_message": version.message},
                }
                for version in self.store.status(spec)
            ]
        )


def signature_def(servable: Servable, name: str) -> Message:
    """Return a SignatureDef by name."""
    if name not in servable.signature_defs:
        raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    return servable.signature_defs[name]


def call_of(
    servable: Servable, request: Message, limits: Limits, most_rows: float = math.inf
) -> Call:
    """Return the call of a PredictRequest; inputs may have `most_rows` rows.

    Raises:
        StatusError: for an unknown signature, or invalid inputs or outputs.
    """
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = signature_def(servable, name)
    check_inputs(signature, request.inputs)
    for alias, proto in request.inputs.items():
        rows = proto.tensor_shape.dim[0].size if proto.tensor_shape.dim else 1
        messages.check_rows(alias, rows, most_rows)
    return Call(
        signature=name,
        inputs={alias: messages.to_array(proto, alias) for alias, proto in request.inputs.items()},
        outputs=output_names(signature, request.output_filter),
        limits=limits,
    )


def check_inputs(signature: Message, input_names: Collection[str]) -> None:
    """Raise StatusError unless a gRPC request's inputs are those of a signature.

    Inputs with defaults may be missing. `json_tensors.to_inputs` checks the inputs of REST
    requests, none of which may be missing.
    """
    known, sent = set(signature.inputs), set(input_names)
    missing, unknown = known - sent - set(signature.defaults), sent - known
    if missing or unknown:
        raise invalid(
            f"Expected the inputs {in_braces(known)}, received {in_braces(sent)}. "
            f"Missing but required: {in_braces(missing)}. Unknown: {in_braces(unknown)}."
        )


def output_names(signature: Message, output_filter: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the outputs to return: the filtered ones, or all."""
    names: list[str] = []
    for name in output_filter:
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {in_braces(signature.outputs)}."
            )
        if name in names:
            raise invalid(f"duplicate output tensor alias: {name}")
        names.append(name)
    return tuple(names) or tuple(sorted(signature.outputs))


def in_braces(names: Iterable[str]) -> str:
    """Return names sorted, separated by commas and in braces."""
    return f"{{{','.join(sorted(names))}}}"


async def run(lease: Lease, call: Call) -> Tensors:
    """Run a signature and return its outputs; see `result_of`.

    Blank texts get no generated text, because the model would make one up.

    Raises:
        StatusError: INVALID_ARGUMENT for a call of an artifact's model without rows.
    """
    signature, reader = lease.servable.signature_defs[call.signature], lease.servable.reader
    blank: list[int] = []
    if reader is not None and call.signature not in TOKENIZER_SIGNATURES:
        check_has_rows(call.inputs)
    if reader is not None and generates_from_texts(call, signature):
        texts = call.inputs[TEXT]
        size = sum(map(len, texts))
        blank = await run_off_loop(size, lambda: reader.blank_rows(texts, call.limits))
    outputs = await result_of(lease.keep(lease.servable.submit(call)), call.limits)
    return blank_out(outputs, blank) if blank else outputs


def check_has_rows(inputs: Tensors) -> None:
    """Raise StatusError for an input without rows; TensorFlow's message would be about a matrix."""
    for name, array in inputs.items():
        if array.shape[:1] == (0,):
            raise invalid(f"Expected {name} to have at least one row, received none")


def generates_from_texts(call: Call, signature: Message) -> bool:
    """Return whether a call generates text from source texts (batch,)."""
    text = call.inputs.get(TEXT)
    return (
        text is not None
        and GENERATED in signature.outputs
        and text.dtype.kind == "O"
        and text.ndim == 1
    )


def blank_out(outputs: Tensors, rows: Sequence[int]) -> Tensors:
    """Return outputs with some rows replaced by empty strings or zeros."""
    results = {}
    for name, value in outputs.items():
        results[name] = value.copy()
        results[name][rows] = b"" if value.dtype.kind == "O" else 0
    return results


async def run_off_loop(size: int, work: Callable[[], Answer]) -> Answer:
    """Do work on `size` bytes: if there are many, on a thread and one at a time."""

    def in_turn() -> Answer:
        with CONVERTING:
            return work()

    return await asyncio.to_thread(in_turn) if size > QUICK_BYTES else work()


async def result_of(future: "Future[Answer]", limits: Limits) -> Answer:
    """Await a servable's work on the running event loop.

    If the awaiting task is cancelled, because the client has disconnected, or the deadline passes,
    the work is asked to stop and is not awaited. The future itself is never cancelled.
    """
    outcome = asyncio.wrap_future(future)
    # Without this, asyncio would log the errors of work that is no longer awaited.
    outcome.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    try:
        if not (await asyncio.wait([outcome], timeout=limits.remaining()))[0]:
            raise TimeoutError
        return outcome.result()
    finally:
        limits.stop.set()
