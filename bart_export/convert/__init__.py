"""The conversions to exported files, one module per target."""
