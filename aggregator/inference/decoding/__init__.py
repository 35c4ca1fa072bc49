"""Decoders as sessions: keys and values of earlier tokens stay on nodes; rows of sessions share trips."""
