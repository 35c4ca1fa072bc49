"""Tokens out of logits: draws that can be repeated, guesses that are verified, text that never breaks."""
