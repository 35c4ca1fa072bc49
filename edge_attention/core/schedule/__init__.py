"""A cut model as data: which part of it runs which segment, and what passes the aggregator in between."""
