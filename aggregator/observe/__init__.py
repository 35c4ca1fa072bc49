"""Metrics in Prometheus form, and what happened lately for a person who looks."""
