"""What is pure: NumPy and the standard library, no I/O, no clock."""
