"""Writers of exported files, one module a target."""
