"""The directory of an artifact: its manifest, drafts that become it in one rename, bundles."""

import pathlib

# Where the app of this repository looks for its model, in a clone.
ASSETS = pathlib.Path("android/app/src/main/assets/bart")
