"""Description and audit of prepared sets."""
