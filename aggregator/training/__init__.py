"""The recipes of training: runs of either kind, their records, and who is told of them."""
