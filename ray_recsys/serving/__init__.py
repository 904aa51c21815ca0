"""The HTTP application: recommendations in two stages, under any ASGI server."""
