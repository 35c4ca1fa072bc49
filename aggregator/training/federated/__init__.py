"""Training by federated rounds: each node holds other samples and the whole model (docs/federated.md)."""
