"""Ensembles: several models answer one request, and their outputs meet.

ensemble.py       what an ensemble is: its members, and how their outputs meet
ensemble_file.py  an ensemble as people write it, in TOML
meeting_outputs.py  outputs side by side, averaged, or attended to; what is absent is said
"""
