"""Run commands of bart-export in one process and print their outcomes as JSON Lines.

The argument is a JSON list of [environment, words].
"""

import json
import sys

from click.testing import CliRunner

from bart_export.cli.main import main

for settings, words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, words, env=settings)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    outcome = {"code": result.exit_code, "printed": result.stdout, "said": result.stderr}
    print(json.dumps(outcome), flush=True)
