"""The program `bart-export`, also as `python -m bart_export`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback even while it is imported."""
    try:
        from bart_export.cli.main import main as command
    except KeyboardInterrupt:
        sys.exit(130)  # `cli.main.INTERRUPTED`
    command()


if __name__ == "__main__":
    main()
