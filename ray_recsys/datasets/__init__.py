"""The demo's data and synthetic logs."""
