"""Logs in the format of Coral's compiler 16, and a program that prints one."""

TWO_FILES = """\
Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Models compiled successfully in 71 ms.

Input model: here/layer_0_feedforward.tflite
Input size: 523.25KiB
Output model: there/layer_0_feedforward_edgetpu.tflite
Output size: 580.00KiB
On-chip memory used for caching model parameters: 6.50MiB
On-chip memory remaining for caching model parameters: 1.25KiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 4
Operation log: there/layer_0_feedforward_edgetpu.log

Operator                       Count      Status

CONV_2D                        2          Mapped to Edge TPU
LOGISTIC                       1          Mapped to Edge TPU
MUL                            1          Mapped to Edge TPU

Input model: here/other.tflite
Input size: 1.00MiB
Output model: there/other_edgetpu.tflite
Output size: 1.10MiB
On-chip memory used for caching model parameters: 0.00B
On-chip memory remaining for caching model parameters: 0.00B
Off-chip memory used for streaming uncached model parameters: 3.25MiB
Number of Edge TPU subgraphs: 1
Total number of operations: 5
Operation log: there/other_edgetpu.log

Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of \
the model will instead run on the CPU, which is slower.
Number of operations that will run on Edge TPU: 3
Number of operations that will run on CPU: 2

Operator                       Count      Status

QUANTIZE                       1          Mapped to Edge TPU
TFLite_Detection_PostProcess   1          Operation is working on an unsupported data type
RESHAPE                        1          Tensor has unsupported rank (up to 3 innermost \
dimensions mapped)
RESHAPE                        2          Mapped to Edge TPU
Compilation child process completed within timeout period.
Compilation succeeded!
"""

REFUSED = """\
Edge TPU Compiler version 16.0.384591198
ERROR: Didn't find op for builtin opcode 'EXP' version '2'. An older version of this builtin might \
be supported.

ERROR: Registration failed.

Invalid model: model.tflite
Model could not be parsed
"""


def install(directory, monkeypatch, log, status=0):
    """Put a fake compiler first on PATH, which prints a log and writes its files."""
    program = directory / "edgetpu_compiler"
    (directory / "log.txt").write_text(log)
    program.write_text(
        "#!/bin/sh\n"
        f'cat "{directory}/log.txt"\n'
        'shift; out="$2"; shift 2\n'
        'for file in "$@"; do\n'
        '  cp "$file" "$out/$(basename "$file" .tflite)_edgetpu.tflite"\n'
        "done\n"
        f"exit {status}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
