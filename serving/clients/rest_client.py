"""Send texts to a BART on TensorFlow Serving or `bart-export serve` over REST.

    python rest_client.py --model bart_mini_en "A text." "Another text."
    python rest_client.py --model bart_mini_en --max-length 16 --min-length 4 "A text."
    python rest_client.py --model bart_mini_en --check artifacts/bart_mini_en

Each request has eight texts, the size of a batch. Needs only `pip install requests`.
"""

import argparse
import functools
import pathlib
import sys
from typing import Any

import golden
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

MAX_BATCH_SIZE = 8  # from batching_params.pbtxt; TensorFlow Serving refuses larger requests
# Neutral settings. REST has no default values, so a request with one setting needs all of them.
# `serving_default` takes none and uses those of the export.
SETTINGS = {
    "max_length": 64,
    "min_length": 0,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "early_stopping": "false",
}
# A full queue answers 503; retry after a moment.
BUSY = Retry(
    total=4, connect=0, read=0, status_forcelist=[503], allowed_methods=None, backoff_factor=0.5
)


class Failure(Exception):
    """A failed request, with advice."""


class Client:
    """A model on a server; `path` selects a version: "", "/versions/3" or "/labels/canary"."""

    def __init__(self, url: str, model: str, path: str, seconds: float) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.seconds = seconds
        self.model = f"{self.url}/v1/models/{model}{path}"
        self.session = requests.Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=BUSY))

    def predict(self, signature: str, inputs: dict[str, Any]) -> Any:
        """Return a signature's outputs by name, or the value of a single output."""
        body = {"signature_name": signature, "inputs": inputs}
        return self.answer("POST", ":predict", body)["outputs"]

    def version(self) -> str:
        """Return the version that answers."""
        return str(self.answer("GET", "/metadata")["model_spec"]["version"])

    def answer(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the JSON of its response; raise Failure for an error."""
        try:
            url = self.model + path
            response = self.session.request(method, url, json=body, timeout=self.seconds)
        except requests.exceptions.RetryError:
            raise Failure(
                "The server's queue was full five times in a row (503). Send fewer requests at a "
                "time, try again later, or start more servers."
            ) from None
        except requests.Timeout:
            raise Failure(
                f"No answer in {self.seconds:g} s. Increase --timeout, or reduce --max-length."
            ) from None
        except requests.ConnectionError:
            raise Failure(
                f"Nothing answers at {self.url}. Start a server, for instance with `bart-export "
                "serve ARTIFACT`, or name another one with --url."
            ) from None
        try:
            content = response.json()
        except ValueError:
            content = {"error": response.text.strip() or response.reason}
        if not response.ok:
            raise Failure(f"The server says {response.status_code}: {content['error']}")
        return content


def generate(
    client: Client, signature: str, texts: list[str], settings: dict[str, Any]
) -> list[list[str]]:
    """Return the generated texts for each text, best first."""
    if signature == "serving_default":
        best: list[str] = client.predict(signature, {"text": texts})
        return [[text] for text in best]
    rows = {name: [value] * len(texts) for name, value in settings.items()}
    outputs = client.predict(signature, {"text": texts, **rows})
    return list(outputs["generated_text"])


def generate_ids(client: Client, token_ids: list[int], settings: dict[str, Any]) -> list[int]:
    """Return the token ids of the best sequence for a source's token ids."""
    source = {"encoder_token_ids": [token_ids], "encoder_lengths": [len(token_ids)]}
    rows = {name: [value] for name, value in settings.items()}
    outputs = client.predict("generate", {**source, **rows})
    length = outputs["decoder_lengths"][0][0]
    return list(outputs["decoder_token_ids"][0][0][:length])


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--model", required=True, help="name on the server")
    parser.add_argument("--url", default="http://127.0.0.1:8501")
    parser.add_argument("--version", help="version of the model; default: the latest")
    parser.add_argument("--label", help="label of a version: stable, canary")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--check", type=pathlib.Path, metavar="ARTIFACT", help="replay golden.json")
    signatures = ("serving_default", "generate_text")  # settings need the second
    parser.add_argument("--signature", choices=signatures, default=signatures[0])
    for name, neutral in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(neutral))
    arguments = parser.parse_args()
    if bool(arguments.texts) == bool(arguments.check) or (arguments.version and arguments.label):
        parser.error("give texts or --check ARTIFACT, and at most one of --version and --label")
    return arguments


def main() -> int:
    """Run the command; return 1 if answers differ, 2 if there are none."""
    given = parse()
    version, label = given.version, given.label
    path = f"/versions/{version}" if version else f"/labels/{label}" if label else ""
    client = Client(given.url, given.model, path, given.timeout)
    chosen = {name: vars(given)[name] for name in SETTINGS if vars(given)[name] is not None}
    signature = "generate_text" if chosen else given.signature
    try:
        if given.check:
            ask = functools.partial(generate_ids, client)
            return min(1, golden.check(given.check, client.version(), ask))
        for first in range(0, len(given.texts), MAX_BATCH_SIZE):
            some = given.texts[first : first + MAX_BATCH_SIZE]
            for texts in generate(client, signature, some, SETTINGS | chosen):
                print("\n".join(texts))
    except (Failure, OSError, ValueError) as failure:
        print(failure, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
