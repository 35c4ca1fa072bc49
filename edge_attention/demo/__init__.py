"""`edge-attention demo`: the whole loop on real data, with every figure checked."""
