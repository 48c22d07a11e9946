"""TensorFlow Serving's PredictionService and ModelService: messages go in and come out.

Each method takes a request message and the limits of the call and returns the response message, or
raises a StatusError with the code and text that TensorFlow Serving answers. Calls are counted and
timed here. Nothing here knows how messages travel, an engine, or where models come from.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from bart_export.server import examples, messages, model_config, tensors
from bart_export.server.examples import CLASSIFY, REGRESS, TASK_METHODS, ExampleMethod
from bart_export.server.metrics import (
    EXAMPLE_COUNT_TOTAL,
    EXAMPLE_COUNTS,
    RUNTIME_LATENCY,
    RUNTIMES,
    Metrics,
)
from bart_export.server.models import ModelSpec, ModelStore
from bart_export.server.options import MAX_ANSWER_BYTES
from bart_export.server.predict import (
    Held,
    UnknownSignature,
    aside,
    check_inputs,
    chosen_outputs,
    chosen_signature,
    held,
)
from bart_export.server.servable import Call, Limits, Tensors
from bart_export.server.served_model import ServedModel
from bart_export.server.status import Code, StatusError

Method = Callable[[Any, Limits], Awaitable[Any]]

SIGNATURE_DEF = "signature_def"
NO_MODEL_SPEC = "Missing ModelSpec"
NO_RELOADS = (
    "HandleReloadConfigRequest is not allowed here. Expected a server with "
    "--allow-reload-requests; --model-config-file-poll-seconds follows a file instead"
)


def services(store: ModelStore, metrics: Metrics) -> dict[str, dict[str, Method]]:
    """Return the methods of both services, by the full names of the services and their own."""
    prediction = PredictionService(store, metrics)
    models = ModelService(store, metrics)
    return {
        "tensorflow.serving.PredictionService": {
            "Predict": prediction.predict,
            "Classify": prediction.classify,
            "Regress": prediction.regress,
            "MultiInference": prediction.multi_inference,
            "GetModelMetadata": prediction.get_model_metadata,
        },
        "tensorflow.serving.ModelService": {
            "GetModelStatus": models.get_model_status,
            "HandleReloadConfigRequest": models.handle_reload_config_request,
        },
    }


def wanted_model(request: Any) -> ModelSpec:
    """Return what a request's `model_spec` asks for.

    Raises:
        StatusError: INVALID_ARGUMENT without one.
    """
    if not request.HasField("model_spec"):
        raise StatusError(Code.INVALID_ARGUMENT, NO_MODEL_SPEC)
    return wanted_version(request.model_spec)


def wanted_version(spec: Any) -> ModelSpec:
    """Return what a ModelSpec message asks for."""
    choice = spec.WhichOneof("version_choice")
    return ModelSpec(
        name=spec.name,
        version=spec.version.value if choice == "version" else None,
        label=spec.version_label if choice == "version_label" else None,
    )


class PredictionService:
    """Runs signatures of the models of a store."""

    def __init__(self, store: ModelStore, metrics: Metrics) -> None:
        self.store = store
        self.metrics = metrics

    @contextlib.contextmanager
    def held(self, wanted: ModelSpec, api: str) -> Iterator[Held]:
        """Hold what answers a request, which is counted and timed."""
        known = wanted.name if wanted.name in self.store.names() else ""
        with (
            self.metrics.request(known, api, "GRPC"),
            held(self.store.lease(wanted)) as holder,
        ):
            yield holder

    async def predict(self, request: Any, limits: Limits) -> Any:
        """Run a signature with tensors."""
        wanted = wanted_model(request)
        with self.held(wanted, "Predict") as holder:
            name, signature = chosen_signature(
                holder.servable, request.model_spec.signature_name, UnknownSignature.GRPC_PREDICT
            )
            check_inputs(signature, request.inputs)
            call = Call(
                signature=name,
                inputs=await aside(request.ByteSize(), lambda: self.inputs(request)),
                outputs=chosen_outputs(signature, request.output_filter),
                limits=limits,
            )
            with self.timed(wanted, "Predict"):
                outputs = await holder.run(call)
            size = sum(array.nbytes for array in outputs.values())
            if size > MAX_ANSWER_BYTES:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"The answer has {size} bytes, and at most {MAX_ANSWER_BYTES} are sent. Ask "
                    "for fewer rows at once, or filter the outputs.",
                )
            return messages.PredictResponse(
                model_spec=answering(wanted, holder.version, name),
                outputs=await aside(size, lambda: protos_of(outputs)),
            )

    def inputs(self, request: Any) -> Tensors:
        """Return the inputs of a PredictRequest as arrays."""
        for alias, proto in request.inputs.items():
            rows = proto.tensor_shape.dim[0].size if proto.tensor_shape.dim else 1
            tensors.check_rows(alias, rows, self.store.options.max_request_rows)
        return {alias: tensors.from_proto(proto, alias) for alias, proto in request.inputs.items()}

    async def classify(self, request: Any, limits: Limits) -> Any:
        """Return the classes and scores of examples."""
        return await self._answer(CLASSIFY, request, limits)

    async def regress(self, request: Any, limits: Limits) -> Any:
        """Return a value for each of some examples."""
        return await self._answer(REGRESS, request, limits)

    async def multi_inference(self, request: Any, limits: Limits) -> Any:
        """Return what several signatures of one model say of the same examples."""
        spec = request.tasks[0].model_spec if request.tasks else messages.ModelSpec()
        wanted = wanted_version(spec)
        with self.held(wanted, "MultiInference") as holder:
            tasks: dict[str, ExampleMethod] = {}
            for task in request.tasks:
                name, method = checked_task(holder, wanted, task)
                if name in tasks:
                    raise StatusError(
                        Code.INVALID_ARGUMENT, f"Duplicate evaluation of signature: {name}"
                    )
                tasks[name] = method
            response = messages.MultiInferenceResponse()
            for name, method in tasks.items():
                result = await self.infer(method, wanted, holder, name, request.input, limits)
                response.results.add(
                    model_spec=answering(wanted, holder.version, name), **{method.field: result}
                )
            return response

    async def _answer(self, method: ExampleMethod, request: Any, limits: Limits) -> Any:
        wanted = wanted_model(request)
        with self.held(wanted, method.api) as holder:
            name, _ = chosen_signature(
                holder.servable, request.model_spec.signature_name, UnknownSignature.EXAMPLES
            )
            return method.response(
                result=await self.infer(method, wanted, holder, name, request.input, limits),
                model_spec=answering(wanted, holder.version, name),
            )

    async def infer(
        self,
        method: ExampleMethod,
        wanted: ModelSpec,
        holder: Held,
        name: str,
        given: Any,
        limits: Limits,
    ) -> Any:
        """Run the signature of a name with the examples of an Input; return the method's result."""
        outputs = method.outputs(holder.servable.signature_defs[name])
        rows = examples.serialized(given)
        tensors.check_rows(examples.INPUT, len(rows), self.store.options.max_request_rows)
        self.metrics.observe(EXAMPLE_COUNTS, len(rows), wanted.name)
        self.metrics.increment(EXAMPLE_COUNT_TOTAL, wanted.name, by=len(rows))
        call = Call(signature=name, inputs={examples.INPUT: rows}, outputs=outputs, limits=limits)
        with self.timed(wanted, method.api):
            return method.result(await holder.run(call), len(rows))

    def timed(self, wanted: ModelSpec, api: str) -> contextlib.AbstractContextManager[None]:
        """Time the engine's part of a request."""
        served = self.store.served.get(wanted.name)
        runtime = RUNTIMES[served.engine] if served else ""
        return self.metrics.timed(RUNTIME_LATENCY, wanted.name, api, runtime)

    async def get_model_metadata(self, request: Any, limits: Limits) -> Any:
        """Return the signatures of a model."""
        wanted = wanted_model(request)
        if not request.metadata_field:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                "GetModelMetadataRequest must specify at least one metadata_field",
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise StatusError(Code.INVALID_ARGUMENT, f"Metadata field {field} is not supported")
        with self.store.lease(wanted) as lease:
            signatures = messages.SignatureDefMap(signature_def=lease.servable.signature_defs)
            for signature in signatures.signature_def.values():
                # TensorFlow Serving tells no defaults since version 2.20.
                signature.ClearField("defaults")
            response = messages.GetModelMetadataResponse(
                model_spec=answering(wanted, lease.version, "")
            )
        response.metadata[SIGNATURE_DEF].Pack(signatures)
        return response


def protos_of(outputs: Tensors) -> dict[str, Any]:
    """Return outputs as TensorProtos, their values in typed fields."""
    return {alias: tensors.to_proto(array) for alias, array in outputs.items()}


def checked_task(holder: Held, wanted: ModelSpec, task: Any) -> tuple[str, ExampleMethod]:
    """Return the name of the signature that a task asks for, and its method.

    Raises:
        StatusError: if it is none, or of another model than that which answers.
    """
    if not task.model_spec.name:
        raise StatusError(Code.INVALID_ARGUMENT, "Found ModelSpec with an empty model name")
    if task.model_spec.name != wanted.name:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        )
    if task.method_name not in TASK_METHODS:
        raise StatusError(
            Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
        )
    name, _ = chosen_signature(
        holder.servable, task.model_spec.signature_name, UnknownSignature.MULTI_INFERENCE
    )
    return name, TASK_METHODS[task.method_name]


class ModelService:
    """Tells of the models of a store, and has others served."""

    def __init__(self, store: ModelStore, metrics: Metrics) -> None:
        self.store = store
        self.metrics = metrics
        self.configuring = asyncio.Lock()

    async def get_model_status(self, request: Any, limits: Limits) -> Any:
        """Return the states of a model's versions."""
        return messages.GetModelStatusResponse(
            model_version_status=[
                messages.ModelVersionStatus(
                    version=status.version,
                    state=status.state.value,
                    status=messages.StatusProto(
                        error_code=status.code.value, error_message=status.message
                    ),
                )
                for status in self.store.status(wanted_model(request))
            ]
        )

    async def handle_reload_config_request(self, request: Any, limits: Limits) -> Any:
        """Serve the models that a request lists instead of those served now.

        The response comes when the models that are new are available. A client that goes away does
        not stop the change.

        Raises:
            StatusError: PERMISSION_DENIED unless the server was started to allow it: who may ask a
                model may not therefore have any directory of the machine served.
        """
        if not self.store.options.allow_reload_requests:
            raise StatusError(Code.PERMISSION_DENIED, NO_RELOADS)
        names = request.metric_names
        before = [counted(self.metrics, name) for name in names]
        models = model_config.from_proto(request.config)
        await asyncio.shield(self._configure(models))
        response = messages.ReloadConfigResponse()
        for name, value in zip(names, before, strict=True):
            increase = counted(self.metrics, name) - value
            response.metric.add(name=name, int64_value_increase=increase)
        return response

    async def _configure(self, models: Sequence[ServedModel]) -> None:
        # It may take minutes, and the threads that other work is given to are few.
        async with self.configuring:
            await asyncio.to_thread(self.store.configure, models)


def answering(wanted: ModelSpec, version: int, signature: str) -> Any:
    """Return the `model_spec` of a response: what answered."""
    return messages.ModelSpec(
        name=wanted.name,
        version=messages.Int64Value(value=version),
        signature_name=signature,
    )


def counted(metrics: Metrics, name: str) -> int:
    """Return the sum of a counter over all its labels; 0 for one that is unknown.

    TensorFlow writes names with slashes, and Prometheus reads them with colons.
    """
    return sum(
        int(value)
        for family, values in list(metrics.values.items())
        if family.name == name.replace("/", ":")
        for value in list(values.values())
    )
