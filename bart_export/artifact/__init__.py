"""Artifact directories: reading, the manifest, atomic writing, and bundles for Android."""

import pathlib

# The model of this repository's app, relative to a clone.
ASSETS = pathlib.Path("android/app/src/main/assets/bart")
