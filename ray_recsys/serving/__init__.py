"""The HTTP application: recommendations over two stages. It runs under any ASGI server."""
