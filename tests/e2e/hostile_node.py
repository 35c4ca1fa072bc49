"""An edge node whose operator lies: what it returns of its updates is changed, everything else is real.

    python -m edge_attention.cli.child hostile_node --lie flip --name e ...

`flip`: updates of the opposite sign, ten times as large. `nan`: one number of them is none. `refuse`: what
stores nothing is called wrong, in words that a terminal would obey.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.program import Append, Fault
from edge_node.executor import Execution
from edge_node.main import main as node

NONSENSE = "nonsense\n2026-11-28 00:00:00 INFO    forged\x1b[31m\x1b]0;title\x07\u202e [bold]red[/bold]"


def flip(tensor):
    return (-10 * tensor).astype(np.float32)


def nan(tensor):
    changed = tensor.copy()
    changed.flat[-1] = np.nan
    return changed


def main():
    at = sys.argv.index("--lie")
    name = sys.argv[at + 1]
    lie = {"flip": flip, "nan": nan, "refuse": None}[name]
    del sys.argv[at : at + 2]
    honest = Execution.contributions

    def contributions(self):
        if name == "refuse" and not any(isinstance(i, Append) for i in self._program.instructions):
            yield replace(self.failure(InvalidArgument("x")), error=Fault("InvalidArgument", NONSENSE))
            return
        for contribution in honest(self):
            tensors = {
                name: lie(tensor) if name.startswith("update/") else tensor
                for name, tensor in contribution.tensors.items()
            }
            yield replace(contribution, tensors=tensors)

    Execution.contributions = contributions
    node()
