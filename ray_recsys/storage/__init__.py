"""Locations of artefacts: local paths and object stores behind one `Location`; see docs/storage.md."""
