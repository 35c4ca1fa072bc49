"""Speed, as ratios to something known: `python -m benchmarks`."""
