"""A run that has recorded many rounds, without training them all."""

from __future__ import annotations


def grow(state, run, many):
    """Have the run stand at round `many`: its latest version is called that, and each round has a record."""
    last = state.get_run(run).version
    template = state.record(run, last)
    with state.transaction():
        for number in range(last + 1, many + 1):
            state.add_record(run, number, {**template, "number": number, "version": number})
        at = (many, many, run, last)
        state._database.execute(
            "UPDATE versions SET version = ?, round = ? WHERE run = ? AND version = ?", at
        )
        state._database.execute("UPDATE runs SET version = ?, round = ? WHERE id = ?", at[:3])
