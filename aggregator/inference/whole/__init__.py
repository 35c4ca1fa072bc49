"""Models that are not cut: their own graph, on as many nodes as are to have it, for inputs of any sizes."""
