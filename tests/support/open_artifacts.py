"""Open artifacts and files of them, and print the results as JSON Lines.

The argument is a JSON list of [location, names of files]. Run in a separate process, because
huggingface_hub reads its settings when it is imported.
"""

import hashlib
import json
import sys

import stalling_files  # noqa: F401 (registers a kind of URL)

from bart_export.artifact.artifact import Artifact
from bart_export.errors import BartExportError

for location, names in json.loads(sys.argv[1]):
    try:
        artifact = Artifact.open(location)
        paths = {name: artifact.path(name) for name in names}
        outcome = {
            "directory": str(artifact.directory),
            "files": {
                name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()
            },
        }
    except BartExportError as error:
        outcome = {"error": type(error).__name__, "line": str(error)}
    print(json.dumps(outcome), flush=True)
