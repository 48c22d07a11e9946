"""Opens an artifact in a separate process first, because opening it may crash.

`tflite_check` refuses files that are known to crash LiteRT; a server, whose other models must keep
running, does not rely on that alone. Run as a program, this module is the separate process. The
next opening uses the weight cache that it builds.
"""

import pathlib
import signal
import subprocess
import sys

from bart_export.errors import BartExportError, EngineError

SECONDS = 300.0  # time limit, which includes packing a large file's weights
ERROR = 2  # exit code of a process that writes the reason to standard output


def survive(directory: pathlib.Path) -> None:
    """Open an artifact and decode in a separate process; raise EngineError if that fails."""
    command = [sys.executable, "-m", __spec__.name, str(directory)]
    try:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"A trial run of {directory} did not finish within {SECONDS:g} s. Another recipe may "
            "be faster; bart-export verify checks whether the files are intact."
        ) from None
    code = process.returncode
    if code == ERROR and process.stdout.strip():
        raise EngineError(process.stdout.strip())
    if code == 1:
        reason = process.stderr.strip().rpartition("\n")[2]
        raise EngineError(f"A trial run of {directory} failed: {reason}")
    if code:
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise EngineError(
            f"A trial run of {directory} was killed by {end}: its .tflite file may not be the one "
            "that bart-export wrote. Export the artifact again."
        )


def decode_twice(directory: pathlib.Path) -> None:
    """Open an artifact and decode two tokens with each number of beams that will be used."""
    import numpy as np

    from bart_export.runtime.generator import Generator
    from bart_export.runtime.logits import log_normalizers

    generator = Generator.from_artifact(directory)
    source = generator.encode("A text.", truncate=True)
    start = generator.generation.decoder_start_token_id
    for beams in {1, generator.generation.num_beams}:
        state = generator.engine.start(source, beams, 2)
        for _ in range(2):
            tokens = np.full(beams, start, np.int32)
            logits, state = generator.engine.step(state, tokens, np.arange(beams, dtype=np.int32))
            log_normalizers(logits)


if __name__ == "__main__":
    try:
        decode_twice(pathlib.Path(sys.argv[1]))
    except BartExportError as error:
        print(error)
        sys.exit(ERROR)
