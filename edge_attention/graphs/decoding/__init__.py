"""Decoders with past keys and values, rewritten so that these are stored where they were made."""
