"""TensorFlow Serving's PredictionService and ModelService: messages go in and come out.

Each method takes a request message and the limits of the call and returns the response message, or
raises a StatusError with the code and text that TensorFlow Serving answers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from bart_export.server import messages, model_config, tensors
from bart_export.server.metrics import Metrics
from bart_export.server.models import ModelSpec, ModelStore
from bart_export.server.options import MAX_ANSWER_BYTES
from bart_export.server.predict import Predictor, aside, check_inputs
from bart_export.server.servable import Limits, Tensors
from bart_export.server.sources import ServedModel
from bart_export.server.status import Code, StatusError, invalid

Method = Callable[[Any, Limits], Awaitable[Any]]

SIGNATURE_DEF = "signature_def"
NO_RELOADS = (
    "HandleReloadConfigRequest is not allowed here. Expected a server with "
    "--allow-reload-requests; --model-config-file-poll-seconds follows a file instead"
)
NO_EXAMPLES = (
    "Classify, Regress and MultiInference are not served here: no signature of a BART model takes "
    "tf.Examples. Ask Predict."
)


def services(store: ModelStore, metrics: Metrics) -> dict[str, dict[str, Method]]:
    """Return the methods of both services, by the full names of the services and their own."""
    prediction = PredictionService(Predictor(store, metrics))
    models = ModelService(store, metrics)
    return {
        "tensorflow.serving.PredictionService": {
            "Predict": prediction.predict,
            "GetModelMetadata": prediction.get_model_metadata,
            **dict.fromkeys(("Classify", "Regress", "MultiInference"), unserved),
        },
        "tensorflow.serving.ModelService": {
            "GetModelStatus": models.get_model_status,
            "HandleReloadConfigRequest": models.handle_reload_config_request,
        },
    }


async def unserved(request: Any, limits: Limits) -> Any:
    """Refuse a method that takes examples."""
    raise StatusError(Code.UNIMPLEMENTED, NO_EXAMPLES)


def wanted_model(request: Any) -> ModelSpec:
    """Return what a request's `model_spec` asks for."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    return ModelSpec(
        name=spec.name,
        version=spec.version.value if choice == "version" else None,
        label=spec.version_label if choice == "version_label" else None,
    )


class PredictionService:
    """Runs signatures of models, and tells of them."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.store = predictor.store

    async def predict(self, request: Any, limits: Limits) -> Any:
        """Run a signature with tensors."""
        wanted = wanted_model(request)
        with self.predictor.counted(wanted, "Predict", "GRPC"):
            answer = await self.predictor.predict(
                wanted,
                request.model_spec.signature_name,
                lambda signature: self.inputs(request, signature),
                request.ByteSize(),
                limits,
                request.output_filter,
            )
            size = sum(array.nbytes for array in answer.outputs.values())
            if size > MAX_ANSWER_BYTES:
                raise invalid(
                    f"The answer has {size} bytes, and at most {MAX_ANSWER_BYTES} are sent. Ask "
                    "for fewer rows at once, or filter the outputs."
                )
            return messages.PredictResponse(
                model_spec=answering(wanted, answer.version, answer.signature),
                outputs=await aside(
                    size,
                    lambda: {
                        name: tensors.to_proto(value) for name, value in answer.outputs.items()
                    },
                ),
            )

    def inputs(self, request: Any, signature: Any) -> Tensors:
        """Return the inputs of a PredictRequest as arrays."""
        check_inputs(signature, request.inputs)
        for alias, proto in request.inputs.items():
            rows = proto.tensor_shape.dim[0].size if proto.tensor_shape.dim else 1
            tensors.check_rows(alias, rows, self.store.options.max_request_rows)
        return {alias: tensors.from_proto(proto, alias) for alias, proto in request.inputs.items()}

    async def get_model_metadata(self, request: Any, limits: Limits) -> Any:
        """Return the signatures of a model."""
        wanted = wanted_model(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise invalid(f"Metadata field {field} is not supported")
        return model_metadata(self.store, wanted)


def model_metadata(store: ModelStore, spec: ModelSpec) -> Any:
    """Return the signatures of a model as a GetModelMetadataResponse."""
    with store.lease(spec) as lease:
        signatures = messages.SignatureDefMap(signature_def=lease.servable.signature_defs)
        response = messages.GetModelMetadataResponse(model_spec=answering(spec, lease.version, ""))
    for signature in signatures.signature_def.values():
        # TensorFlow Serving tells no defaults since version 2.20.
        signature.ClearField("defaults")
    response.metadata[SIGNATURE_DEF].Pack(signatures)
    return response


def model_status(store: ModelStore, spec: ModelSpec) -> Any:
    """Return the states of a model's versions as a GetModelStatusResponse."""
    return messages.GetModelStatusResponse(
        model_version_status=[
            {
                "version": status.version,
                "state": status.state.value,
                "status": {"error_code": status.code.value, "error_message": status.message},
            }
            for status in store.status(spec)
        ]
    )


class ModelService:
    """Tells of the models of a store, and has others served."""

    def __init__(self, store: ModelStore, metrics: Metrics) -> None:
        self.store = store
        self.metrics = metrics
        self.configuring = asyncio.Lock()

    async def get_model_status(self, request: Any, limits: Limits) -> Any:
        """Return the states of a model's versions."""
        return model_status(self.store, wanted_model(request))

    async def handle_reload_config_request(self, request: Any, limits: Limits) -> Any:
        """Serve the models that a request lists instead of those served now.

        The response comes when the models that are new are available. A client that goes away does
        not stop the change.
        """
        if not self.store.options.allow_reload_requests:
            raise StatusError(Code.PERMISSION_DENIED, NO_RELOADS)
        # TensorFlow writes names with slashes, and Prometheus reads them with colons.
        names = request.metric_names
        before = [self.metrics.total(name.replace("/", ":")) for name in names]
        models = model_config.from_proto(request.config)
        await asyncio.shield(self._configure(models))
        response = messages.ReloadConfigResponse()
        for name, value in zip(names, before, strict=True):
            increase = self.metrics.total(name.replace("/", ":")) - value
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
