"""Planners: which node is to hold what."""
