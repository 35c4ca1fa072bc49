"""Which node holds what."""
