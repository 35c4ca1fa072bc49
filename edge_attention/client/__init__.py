"""The Python client: asyncio, and the same without an event loop."""
