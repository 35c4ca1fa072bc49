"""The recipes of attention: contexts, append, attend."""
