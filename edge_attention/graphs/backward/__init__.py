"""Gradients of a cut model: each segment is differentiated alone, what lies between is transposed."""
