"""Counters, and what happened lately."""
