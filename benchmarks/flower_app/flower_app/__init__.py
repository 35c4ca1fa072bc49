"""The federated benchmark's work, done by Flower: it runs in Flower's own environment."""
