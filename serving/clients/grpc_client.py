"""Send texts to a BART on TensorFlow Serving or `bart-export serve` over gRPC.

    python grpc_client.py --model bart_mini_en "A text." "Another text."
    python grpc_client.py --model bart_mini_en --max-length 16 "A text."
    python grpc_client.py --model bart_mini_en --check artifacts/bart_mini_en

Each text is a request. All are sent at the same time, so that the server can batch them.
Needs `pip install grpcio protobuf`, and serving.binpb in the same directory, which describes the
messages. The official message classes (`pip install tensorflow-serving-api`) work too, but import
TensorFlow.
"""

import argparse
import functools
import json
import pathlib
import sys
from typing import Any

import golden
import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DESCRIPTORS = pathlib.Path(__file__).with_name("serving.binpb")
SERVICE = "tensorflow.serving.PredictionService"
# Optional settings. The export's defaults apply to missing ones; they have one row, so a request
# without all settings must have one text.
SETTINGS = {
    "max_length": int,
    "min_length": int,
    "length_penalty": float,
    "repetition_penalty": float,
    "early_stopping": str,
}
# TensorProto field and DataType by Python type.
FIELDS = {int: ("int_val", "DT_INT32"), float: ("float_val", "DT_FLOAT"),
          str: ("string_val", "DT_STRING")}  # fmt: skip
# A full queue answers UNAVAILABLE; retry after a moment.
BUSY = {
    "name": [{"service": SERVICE}],
    "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.5s",
        "maxBackoff": "8s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    },
}
OPTIONS = [
    ("grpc.service_config", json.dumps({"methodConfig": [BUSY]})),
    # The hidden states of a long text exceed gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", -1),
]
ADVICE = {
    grpc.StatusCode.UNAVAILABLE: "Is a server running there (`bart-export serve ARTIFACT`)? If so, "
    "its queue is full: send fewer requests at a time, try later, or start more servers.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "Increase --timeout, or reduce --max-length.",
}


def messages() -> descriptor_pool.DescriptorPool:
    """Return the message types of serving.binpb."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


class Method:
    """A method of the prediction service."""

    def __init__(self, channel: grpc.Channel, pool: descriptor_pool.DescriptorPool, name: str):
        method = pool.FindServiceByName(SERVICE).methods_by_name[name]
        self.request = message_factory.GetMessageClass(method.input_type)
        response = message_factory.GetMessageClass(method.output_type)
        self.call = channel.unary_unary(
            f"/{SERVICE}/{name}", self.request.SerializeToString, response.FromString
        )


def fill_tensor(tensor: Any, rows: list[Any]) -> None:
    """Fill a TensorProto with rows: values of one type, or lists of equal length."""
    shape = [len(rows)]
    if isinstance(rows[0], list):
        shape.append(len(rows[0]))
        rows = [value for row in rows for value in row]
    field, dtype = FIELDS[type(rows[0])]
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    types = tensor.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_name
    tensor.dtype = types[dtype].number
    getattr(tensor, field).extend([row.encode() if field == "string_val" else row for row in rows])


class Client:
    """A model on a server: a version, a label, or the latest version."""

    def __init__(self, channel: grpc.Channel, spec: dict[str, Any], seconds: float) -> None:
        pool = messages()
        self.predicting = Method(channel, pool, "Predict")
        self.metadata = Method(channel, pool, "GetModelMetadata")
        self.spec, self.seconds = spec, seconds

    def predict(self, signature: str, inputs: dict[str, list[Any]]) -> Any:
        """Send a request; return a future of its response."""
        request = self.predicting.request()
        self.fill(request.model_spec)
        request.model_spec.signature_name = signature
        for name, rows in inputs.items():
            fill_tensor(request.inputs[name], rows)
        return self.predicting.call.future(request, timeout=self.seconds)

    def version(self) -> str:
        """Return the version that answers."""
        request = self.metadata.request(metadata_field=["signature_def"])
        self.fill(request.model_spec)
        response = self.metadata.call(request, timeout=self.seconds)
        return str(response.model_spec.version.value)

    def fill(self, spec: Any) -> None:
        """Fill a ModelSpec with the model and its version or label."""
        spec.name = self.spec["model"]
        if self.spec["label"]:
            spec.version_label = self.spec["label"]
        elif self.spec["version"]:
            spec.version.value = self.spec["version"]


def generate_ids(client: Client, token_ids: list[int], settings: dict[str, Any]) -> list[int]:
    """Return the token ids of the best sequence for a source's token ids."""
    source = {"encoder_token_ids": [token_ids], "encoder_lengths": [len(token_ids)]}
    rows = {name: [value] for name, value in settings.items()}
    outputs = client.predict("generate", {**source, **rows}).result().outputs
    length = outputs["decoder_lengths"].int_val[0]
    return list(outputs["decoder_token_ids"].int_val[:length])


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--model", required=True, help="name on the server")
    parser.add_argument("--address", default="127.0.0.1:8500")
    parser.add_argument("--version", type=int, help="version of the model; default: the latest")
    parser.add_argument("--label", help="label of a version: stable, canary")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--check", type=pathlib.Path, metavar="ARTIFACT", help="replay golden.json")
    signatures = ("serving_default", "generate_text")  # settings need the second
    parser.add_argument("--signature", choices=signatures, default=signatures[0])
    for name, kind in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    arguments = parser.parse_args()
    if bool(arguments.texts) == bool(arguments.check) or (arguments.version and arguments.label):
        parser.error("give texts or --check ARTIFACT, and at most one of --version and --label")
    return arguments


def main() -> int:
    """Run the command; return 1 if answers differ, 2 if there are none."""
    given = parse()
    chosen = {name: [vars(given)[name]] for name in SETTINGS if vars(given)[name] is not None}
    signature = "generate_text" if chosen else given.signature
    try:
        with grpc.insecure_channel(given.address, OPTIONS) as channel:
            client = Client(channel, vars(given), given.timeout)
            if given.check:
                ask = functools.partial(generate_ids, client)
                return min(1, golden.check(given.check, client.version(), ask))
            sent = [client.predict(signature, {"text": [text], **chosen}) for text in given.texts]
            for future in sent:
                for text in future.result().outputs["generated_text"].string_val:
                    print(text.decode())
    except grpc.RpcError as error:
        advice = ADVICE.get(error.code(), "")
        reason = error.details().removesuffix(".")
        print(f"{error.code().name}: {reason}. {advice}".strip(), file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
