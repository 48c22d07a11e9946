"""A first opening of an artifact in a process of its own, which may crash.

`graph_rules` refuses what is known to crash the process that opens it. A server, whose other models
must go on, does not rely on that alone. Run as a program, this module is that process. The next
opening finds the weight cache that it builds.
"""

import pathlib
import signal
import subprocess
import sys

from bart_export.errors import BartExportError, EngineError

SECONDS = 300.0  # a large file's weights are packed meanwhile
ERROR = 2  # exit code of one that says what is wrong on its standard output


def survive(directory: pathlib.Path) -> None:
    """Open an artifact's `.tflite` file and decode two tokens, in a process of its own.

    Raises:
        EngineError: with what is wrong, if the process says so, fails otherwise, is ended, or does
            not end.
    """
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
            f"A process that tried {directory} did not end within {SECONDS:g} s. Another recipe "
            "may be quicker; verify says whether the files are whole."
        ) from None
    code = process.returncode
    if code == ERROR and process.stdout.strip():
        raise EngineError(process.stdout.strip())
    if code == 1:
        reason = process.stderr.strip().rpartition("\n")[2]
        raise EngineError(f"A process that tried {directory} failed: {reason}")
    if code:
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise EngineError(
            f"A process that tried {directory} was ended by {end}: its .tflite file may not be "
            "what bart-export wrote. Export the artifact again."
        )


def decode_twice(directory: pathlib.Path) -> None:
    """Open an artifact and decode two tokens with every number of beams that it will be asked."""
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
