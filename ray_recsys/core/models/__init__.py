"""Models; each scores (user, item) pairs and the whole catalogue."""
