"""Attention's own graphs: the code that builds them, and the files."""
