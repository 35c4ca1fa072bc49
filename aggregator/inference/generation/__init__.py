"""Text and tokens of deployed decoders, as a stream: over `decoding`'s sessions."""
