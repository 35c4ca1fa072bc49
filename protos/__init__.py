"""The contract between nodes, the aggregator and clients: messages and services."""
