"""Where artefacts are: local paths and object stores behind one `Location`; see docs/storage.md."""
