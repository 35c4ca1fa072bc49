"""`edge-attention doctor`: checks a box or a fleet and names the fix.

What measures (`measure_*.py`) has no opinion, and what judges (`*_findings.py`, `fewer.py`) does no I/O:
facts in, a `Finding` out. `examine.py` puts them together. docs/doctor.md says what each check means.
"""
