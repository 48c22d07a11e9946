"""Warm-up: the requests that a version directory brings and that run before clients' do.

They lie in `assets.extra/tf_serving_warmup_requests`, a TFRecord file of PredictionLog messages,
and run one after the other; one that fails fails the load. The rules are those of TensorFlow
Serving's saved_model_warmup.cc, the format that of TensorFlow's core/lib/io/record_writer.h.
"""

import itertools
import pathlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import DecodeError

from bart_export import documents
from bart_export.server import messages, tensors
from bart_export.server.predict import (
    DEFAULT_SIGNATURE,
    check_inputs,
    chosen_outputs,
    chosen_signature,
)
from bart_export.server.servable import Call, Limits, Servable
from bart_export.server.status import Code, StatusError, invalid, status_of_error

REQUESTS = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000
MAX_BYTES = 1 << 28  # of all records; those of an export have some kilobytes

LENGTH, CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
HEADER_BYTES = LENGTH.size + CHECKSUM.size
# The reversed Castagnoli polynomial of CRC-32C (RFC 3720, appendix B.4).
CASTAGNOLI = 0x82F63B78
MASK_DELTA = 0xA282EAD8


def run_warmup(servable: Servable, directory: pathlib.Path, deadline: float | None = None) -> int:
    """Run the warm-up requests of a version directory."""
    path = directory / REQUESTS
    if not path.is_file():
        return 0
    if (size := path.stat().st_size) > MAX_BYTES:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{path} must have at most {MAX_BYTES} bytes; has {size}"
        )
    records = list(itertools.islice(read_records(path), MAX_RECORDS + 1))
    if len(records) > MAX_RECORDS:
        raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
    for number, record in enumerate(records, 1):
        try:
            run_log(servable, messages.PredictionLog.FromString(record), Limits(deadline=deadline))
        except DecodeError as error:
            raise invalid(f"Failed to parse warmup record {number} from {path}") from error
        except Exception as error:  # an engine may raise anything
            status = status_of_error(error)
            raise StatusError(
                status.code, f"Warmup record {number} from {path} failed: {status.message}"
            ) from error
    return len(records)


def run_log(servable: Servable, log: Any, limits: Limits) -> None:
    """Run the PredictRequest of a PredictionLog; other kinds of requests are passed over."""
    if not log.HasField("predict_log"):
        return
    request = log.predict_log.request
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = chosen_signature(servable, name)
    check_inputs(signature, request.inputs)
    inputs = {alias: tensors.from_proto(proto, alias) for alias, proto in request.inputs.items()}
    outputs = chosen_outputs(signature, request.output_filter)
    call = Call(signature=name, inputs=inputs, outputs=outputs, limits=limits)
    servable.submit(call).result(limits.remaining())


def write_records(path: pathlib.Path, requests: Iterable[Any]) -> None:
    """Write requests as a file of warm-up records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for request in requests:
            log = messages.PredictionLog(predict_log={"request": request})
            content: bytes = log.SerializeToString(deterministic=True)
            for part in (LENGTH.pack(len(content)), content):
                file.write(part + CHECKSUM.pack(masked_crc32c(part)))


def read_records(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file: each a length and a content, with checksums."""
    with documents.open_regular(path) as file:
        size = path.stat().st_size
        while header := file.read(HEADER_BYTES):
            start = file.tell() - len(header)
            (length,) = LENGTH.unpack(checked(path, start, header, LENGTH.size))
            # Not more than there is: a length that was tampered with must not allocate anything.
            yield checked(path, start, file.read(min(length, size) + CHECKSUM.size), length)


def checked(path: pathlib.Path, start: int, data: bytes, length: int) -> bytes:
    """Return what stands in front of its checksum."""
    if len(data) < length + CHECKSUM.size:
        raise data_loss(path, "truncated", start)
    if CHECKSUM.unpack(data[length:])[0] != masked_crc32c(data[:length]):
        raise data_loss(path, "corrupted", start)
    return data[:length]


def data_loss(path: pathlib.Path, problem: str, start: int) -> StatusError:
    """Return the error for a file that is no TFRecord file, or no more."""
    return StatusError(
        Code.DATA_LOSS,
        f"{problem} record at {start} of {path}. Please verify your warmup data is in TFRecord "
        "format.",
    )


def crc_of_byte(byte: int) -> int:
    """Return the CRC-32C register after one byte."""
    for _ in range(8):
        byte = byte >> 1 ^ (CASTAGNOLI if byte & 1 else 0)
    return byte


CRC_TABLE = tuple(map(crc_of_byte, range(256)))


def crc32c(content: bytes) -> int:
    """Return the CRC-32C of bytes (RFC 3720, appendix B.4)."""
    register = 0xFFFFFFFF
    for byte in content:
        register = CRC_TABLE[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


def masked_crc32c(content: bytes) -> int:
    """Return the checksum that a TFRecord stores: one that data with checksums in it can have."""
    register = crc32c(content)
    return ((register >> 15 | register << 17) + MASK_DELTA) & 0xFFFFFFFF
