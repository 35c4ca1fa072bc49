"""The nodes: which are there, under which lease, and what each says of itself."""
