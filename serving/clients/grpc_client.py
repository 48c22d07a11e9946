"""Ask a BART behind TensorFlow Serving, or behind `bart-export serve`, over gRPC.

    python grpc_client.py --model bart_mini_en "A text." "Another text."
    python grpc_client.py --model bart_mini_en --max-length 16 "A text."
    python grpc_client.py --model bart_mini_en --check artifacts/bart_mini_en

Every text is a request of its own, and all are under way at once: the server puts them together.
It needs `pip install tensorflow-serving-api`.
"""

import argparse
import functools
import json
import os
import pathlib
import sys
from typing import Any

import golden
import grpc
import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

# What a request may say. What it leaves out is as it was set at export: gRPC has default values,
# which are of one row, so that a request which leaves something out must be of one text.
SETTINGS = {
    "max_length": np.int32,
    "min_length": np.int32,
    "length_penalty": np.float32,
    "repetition_penalty": np.float32,
    "early_stopping": str,
}
# A full queue refuses at once, with UNAVAILABLE; a moment later there may be room.
BUSY = {
    "name": [{"service": "tensorflow.serving.PredictionService"}],
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
    # The hidden states of a long text are more than the 4 MiB that a client takes by default.
    ("grpc.max_receive_message_length", -1),
]
ADVICE = {
    grpc.StatusCode.UNAVAILABLE: "Is a server running there (`bart-export serve ARTIFACT`)? If it "
    "is, its queue is full: send fewer requests at a time, try later, or start more servers.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "Wait longer with --timeout, or ask for less with "
    "--max-length.",
}


class Client:
    """A model on a server, with one of its versions, or what a label names, or the latest."""

    def __init__(self, channel: grpc.Channel, spec: dict[str, Any], seconds: float) -> None:
        self.stub = PredictionServiceStub(channel)
        self.spec, self.seconds = spec, seconds

    def predict(self, signature: str, inputs: dict[str, Any]) -> Any:
        """Send a request; return a future of its response."""
        request = predict_pb2.PredictRequest()
        self.fill(request.model_spec)
        request.model_spec.signature_name = signature
        for name, rows in inputs.items():
            dtype = str if name == "text" else SETTINGS.get(name, np.int32)
            request.inputs[name].CopyFrom(tf.make_tensor_proto(np.array(rows, dtype)))
        return self.stub.Predict.future(request, timeout=self.seconds)

    def version(self) -> str:
        """Return the version that answers."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self.fill(request.model_spec)
        response = self.stub.GetModelMetadata(request, timeout=self.seconds)
        return str(response.model_spec.version.value)

    def fill(self, spec: Any) -> None:
        """Say which model, and which version, is asked."""
        spec.name = self.spec["model"]
        if self.spec["label"]:
            spec.version_label = self.spec["label"]
        elif self.spec["version"]:
            spec.version.value = self.spec["version"]


def generate_ids(client: Client, token_ids: list[int], settings: dict[str, Any]) -> list[int]:
    """Return the token ids of the best sequence generated from the ids of a source."""
    source = {"encoder_token_ids": [token_ids], "encoder_lengths": [len(token_ids)]}
    rows = {name: [value] for name, value in settings.items()}
    outputs = client.predict("generate", {**source, **rows}).result().outputs
    length = outputs["decoder_lengths"].int_val[0]
    return list(outputs["decoder_token_ids"].int_val[:length])


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--model", required=True, help="its name on the server")
    parser.add_argument("--address", default="127.0.0.1:8500")
    parser.add_argument("--version", type=int, help="of the model; default: the latest")
    parser.add_argument("--label", help="of a version of the model: stable, canary")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--check", type=pathlib.Path, metavar="ARTIFACT", help="replay golden.json")
    signatures = ("serving_default", "generate_text")  # a setting, given below, takes the second
    parser.add_argument("--signature", choices=signatures, default=signatures[0])
    for name, kind in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    arguments = parser.parse_args()
    if bool(arguments.texts) == bool(arguments.check) or (arguments.version and arguments.label):
        parser.error("give texts or --check ARTIFACT, and --version or --label if at all")
    return arguments


def main() -> int:
    """Run the command; return its exit code: 1 for different answers, 2 for none."""
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
        print(f"{error.code().name}: {error.details()} {advice}".strip(), file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
