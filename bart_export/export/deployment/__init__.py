"""The files beside a SavedModel that deploy it."""
