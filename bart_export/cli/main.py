"""The command `bart-export` and its sub-commands.

Without a sub-command, `bart-export --preset … --target …` exports. Commands import heavy modules
when they run, so that `--help` is quick and `generate` needs no TensorFlow. A `BartExportError` is
printed as one line on standard error, and the command exits with `FAILED` or `REFUSED`.
"""

import io
import os
import pathlib
import sys
from collections.abc import Callable
from typing import BinaryIO, cast

import click

from bart_export import __version__, cli
from bart_export.cli import Value, flag, given_options
from bart_export.cli.bench import bench
from bart_export.cli.export import export_options, run
from bart_export.cli.generate import generate
from bart_export.cli.push import push
from bart_export.cli.serve import serve
from bart_export.cli.tune import tune
from bart_export.cli.verify import edgetpu, verify
from bart_export.errors import BartExportError, VerificationFailed, bounded, printable
from bart_export.presets import PRESETS

FAILED, REFUSED = 1, 2  # a verification, and everything else; click's usage errors are 2, too
INTERRUPTED = 130  # 128 + SIGINT, as in shells
# Name, mode and buffering of each standard stream, and the flags to reopen a closed one.
STREAMS = (
    ("stdin", "rb", -1, os.O_RDONLY),
    ("stdout", "wb", 0, os.O_RDONLY),
    ("stderr", "wb", 0, os.O_WRONLY),
)


class Commands(click.Group):
    """A click group that prints an error as one line and exits with its code."""

    def main(self, *args: Value, standalone_mode: bool = True, **kwargs: Value) -> Value:
        """Run the command line."""
        open_closed_streams()
        accept_all_characters()
        try:
            start: Callable[..., Value] = super().main
            code = start(*args, **kwargs, standalone_mode=False)
            return sys.exit(code) if standalone_mode else code
        except click.ClickException as error:  # its message quotes arguments
            error.message = bounded(error.message)  # type: ignore[misc]
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:  # before a command runs
            sys.exit(INTERRUPTED)
        except OSError as error:  # other errors are caught earlier
            deleted = isinstance(error, FileNotFoundError)
            place = error.filename or ("The current directory" if deleted else "Standard output")
            click.echo(bounded(f"Error: {place}: {error.strerror}."), err=True)
            sys.exit(REFUSED)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Value:
        """Return the command that the arguments name; suggest one for a preset or path."""
        name = args[0]
        if not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            from bart_export.artifact.artifact import export_command, is_artifact

            if is_artifact(pathlib.Path(name)):
                ctx.fail(f"Which command? For a text: bart-export generate {name} TEXT")
            if name in PRESETS or "://" in name or pathlib.Path(name).exists():
                ctx.fail(f"Which command? To export a preset: {export_command(name)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Value:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BartExportError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(FAILED if isinstance(error, VerificationFailed) else REFUSED)
        except KeyboardInterrupt as error:
            click.echo(str(error) or "Interrupted.", err=True)
            ctx.exit(INTERRUPTED)


def open_closed_streams() -> None:
    """Reopen standard streams that the caller closed, as with `>&-`.

    Otherwise the next files would get their descriptors, and native messages could end up in an
    artifact. Output is opened for reading, so that writing a result is an error.
    """
    for number, (name, mode, buffering, flags) in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)
            raw = cast(BinaryIO, os.fdopen(number, mode, buffering, closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, "utf-8", write_through=True))


def accept_all_characters() -> None:
    """Escape characters that the encoding of standard output lacks, instead of failing.

    The encoding of a file or a pipe is UTF-8 unless PYTHONIOENCODING sets another.
    """
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        keep = stream.isatty() or "PYTHONIOENCODING" in os.environ
        stream.reconfigure(encoding=None if keep else "utf-8", errors="backslashreplace")


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
@export_options
@click.pass_context
def main(context: click.Context, /, **given: Value) -> None:
    """Export a BART checkpoint for deployment, and verify the files against the Keras model.

    \b
    Export the embedded preset, then generate a headline:
      bart-export --preset bart_mini_en --target tflite
      bart-export generate artifacts/bart_mini_en "This library reads spreadsheets."

    Every exported file is compared with the Keras model before the artifact is replaced. If a file
    is outside its recipe's tolerance, the export fails with exit code 1.
    """
    if context.invoked_subcommand is not None:
        for name in given_options(context.params):
            command = context.invoked_subcommand
            raise click.UsageError(
                f"Give {flag(name)} after export."
                if command == "export"
                else f"{flag(name)} applies to the export, not to {command}."
            )
        return
    if given["preset"] is None and given["target"] is None:
        click.echo(context.get_help())
        return
    run(**given)


@main.command()
@export_options
def export(**given: Value) -> None:
    """Export a preset, like bart-export without a command."""
    run(**given)


@main.command()
def presets() -> None:
    """List the named presets."""
    for preset in PRESETS.values():
        click.echo(f"{preset.name}  ({preset.parameters / 1e6:.1f} M parameters)")
        click.echo(f"    {preset.description}")
        click.echo(f"    {'embedded in this package' if preset.directory else preset.handle}")


@main.command()
@click.argument("preset_or_artifact", type=cli.PRESET)
@cli.JSON
def inspect(preset_or_artifact: str, as_json: bool) -> None:
    """Show the configuration, parameters, signatures and files of a preset or an artifact."""
    from bart_export.cli import inspect as inspection

    facts = inspection.facts(preset_or_artifact)
    if as_json:
        cli.print_json(inspection.to_json(facts))
        return
    for line in inspection.lines(facts):
        click.echo(printable(line))


for command in (generate, verify, bench, tune, serve, push, edgetpu):
    main.add_command(command)
