"""Training one model through a split of it: parts on nodes, gradients to the aggregator."""
