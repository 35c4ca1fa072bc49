"""A fleet of a year in an hour: what is left of it, and how quickly the aggregator is back."""
