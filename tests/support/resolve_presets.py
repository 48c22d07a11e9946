"""Resolve the presets given as arguments and print the results as JSON Lines.

Run in a separate process, because the hubs' clients read their settings when imported.
"""

import json
import sys
from pathlib import Path

from bart_export.checkpoints import resolve
from bart_export.errors import BartExportError

for preset in sys.argv[1:]:
    try:
        source = resolve.find(preset)
        outcome = {
            "handle": source.handle,
            "revision": source.revision,
            "generation": source.generation and source.generation.to_dict(),
            "directory": str(source.directory),
            "files": sorted(
                str(path.relative_to(source.directory))
                for path in Path(source.directory).rglob("*")
                if path.is_file()
            ),
        }
    except BartExportError as error:
        outcome = {"error": type(error).__name__, "line": str(error)}
    print(json.dumps(outcome))
