"""The edge daemon: a store of tensors, graphs by digest, and a handful of instructions."""
