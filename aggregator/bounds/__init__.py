"""Everything a caller can make grow, and whose turn it is."""
