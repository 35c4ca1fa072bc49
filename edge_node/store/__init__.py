"""What the node holds: tensors and sequences, in memory and on disk."""
