"""The texts a calibration runs, and the search that decodes them.

A file, a preset's directory and a tokenizer go in; token ids come out, with the hash of what they
were made of. Texts are what somebody gave, else those that ship with the preset, else the golden
ones. What is measured while they run is not known here.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

from bart_export.artifact import manifest
from bart_export.convert.calibration import Calibration, Calibrator, Traced
from bart_export.runtime import search
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import data, golden

FILE = "calibration.jsonl"  # in a preset's directory
GIVEN, PRESET, GOLDEN = "given", "preset", "golden"
# Texts that are run of those that ship with a preset: ranges hardly grow after them.
ENOUGH = 32


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts to calibrate with: all of a file that was given, the first `ENOUGH` of a preset's own.

    `origin` says whose they are: "given", of the "preset", or "golden". `sha256` is that of the
    file, or of the golden texts' UTF-8, one after the other.
    """

    texts: tuple[str, ...]
    origin: str
    sha256: str

    def entry(self, calibration: Calibration) -> manifest.Calibration:
        """Return what a file's entry in the manifest says of a calibration with these texts."""
        return manifest.Calibration(
            calibration.texts, calibration.samples, self.origin, self.sha256
        )


def texts(given: pathlib.Path | None, preset: pathlib.Path) -> Texts:
    """Return the texts for a preset's directory, those of a file where one is given.

    Raises:
        InputError: for a file that cannot be read.
    """
    own = preset / FILE
    if given is None and not own.is_file():
        joined = "".join(golden.TEXTS).encode()
        return Texts(golden.TEXTS, GOLDEN, hashlib.sha256(joined).hexdigest())
    path, origin, most = (own, PRESET, ENOUGH) if given is None else (given, GIVEN, None)
    return Texts(tuple(one.text for one in data.read(path)[:most]), origin, data.digest(path))


def calibrator(chosen: Texts, info: ModelInfo) -> Calibrator:
    """Return what calibrates with texts, decoded as the preset's settings say."""
    generation = info.generation

    def decode(model: Traced, token_ids: Sequence[int], num_beams: int, longest: int) -> None:
        settings = generation.replace(
            num_beams=num_beams,
            num_return_sequences=1,
            do_sample=False,
            max_length=min(generation.max_length, longest),
            min_length=min(generation.min_length, longest),
        )
        state = model.start(token_ids, num_beams, settings.max_length)
        search.run(search.search(settings), model.step, state)

    return Calibrator(
        info.config, list(map(info.encode, chosen.texts)), decode, generation.num_beams
    )
