"""The recipe behind `edge-attention doctor`."""
