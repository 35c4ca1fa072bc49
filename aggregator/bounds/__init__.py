"""Bounds on what callers can make grow, and turns for calls that must wait."""
