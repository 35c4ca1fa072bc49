"""Requests of one deployed model in a queue: who goes next, and who goes together."""
