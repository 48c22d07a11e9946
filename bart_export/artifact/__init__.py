"""The directory of an artifact: its manifest, drafts that become it in one rename, bundles."""
