"""What a model reads of a request's texts: the beginning of a long one, nothing of a blank one.

The rule is one for all engines and fronts. A text that is longer than the model reads is cut, and a
text without a word gets an empty text instead of one that the model makes up. Clients are told
beside the outputs, whose form is TensorFlow Serving's; see `servable.Remarks`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bart_export.artifact.artifact import Artifact
from bart_export.errors import InputError
from bart_export.server.servable import Call, Remarks, Tensors
from bart_export.server.tensors import numpy_dtype
from bart_export.text.tokenizer import BartTokenizer

TEXT, GENERATED = "text", "generated_text"


@dataclasses.dataclass(frozen=True)
class TextReader:
    """Reads texts as a model does: `longest` source tokens at most, both ends included."""

    tokenizer: BartTokenizer
    longest: int

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "TextReader":
        """Return the reader of an artifact's texts.

        Raises:
            ArtifactError, TokenizerError: as `BartTokenizer.from_artifact` does.
        """
        return cls(
            BartTokenizer.from_artifact(artifact), artifact.manifest["encoder_sequence_length"]
        )

    def encode(self, text: str, remarks: Remarks, row: int = 0) -> list[int]:
        """Return the ids of a text, cut to what the model reads, which is remarked.

        Raises:
            InputError: for a text that is not valid Unicode.
        """
        try:
            return self.tokenizer.encode(text, self.longest)
        except InputError:
            ids = self.tokenizer.encode(text, self.longest, truncate=True)
            remarks.truncated.append(row)
            return ids

    def worded_rows(self, call: Call) -> list[int]:
        """Return the rows of a call that have a word; what is not read of the texts is remarked."""
        worded = []
        for row, data in enumerate(call.inputs[TEXT]):
            call.limits.check()
            text = data.decode("utf-8", "replace")
            if is_blank(text):
                call.limits.remarks.empty.append(row)
            else:
                self.encode(text, call.limits.remarks, row)
                worded.append(row)
        return worded


def is_blank(text: str) -> bool:
    """Say whether a text has no word: it is empty or white space."""
    return not text.strip()


def generates_from_texts(call: Call, signature: Any) -> bool:
    """Say whether a call generates texts from texts (batch,)."""
    text = call.inputs.get(TEXT)
    return (
        text is not None
        and GENERATED in signature.outputs
        and text.dtype.kind == "O"
        and text.ndim == 1
        and text.size > 0
    )


def selected(call: Call, rows: Sequence[int]) -> Call:
    """Return a call for some rows of a call; an input of one row goes for all of them."""
    count = len(call.inputs[TEXT])
    inputs = {
        name: value[rows] if value.shape[:1] == (count,) else value
        for name, value in call.inputs.items()
    }
    return dataclasses.replace(call, inputs=inputs)


def restored(call: Call, rows: Sequence[int], outputs: Tensors, signature: Any) -> Tensors:
    """Return the outputs of some rows of a call as those of all: of the others, nothing.

    Args:
        call: with all rows.
        rows: those that were computed.
        outputs: theirs; {} if there were none.
        signature: the SignatureDef.
    """
    count = len(call.inputs[TEXT])
    whole = {}
    for name in call.outputs:
        info = signature.outputs[name]
        if name in outputs:
            shape: Sequence[int] = outputs[name].shape[1:]
        else:
            shape = [max(0, axis.size) for axis in info.tensor_shape.dim[1:]]
        dtype = numpy_dtype(info.dtype)
        whole[name] = np.full((count, *shape), b"" if dtype.kind == "O" else 0, dtype)
        if name in outputs:
            whole[name][rows] = outputs[name]
    return whole
