"""An edge node whose operator lies: what it returns of its updates is changed, everything else is real.

    python -m edge_attention.cli.child hostile_node --lie flip --name e ...

`flip`: updates of the opposite sign, ten times as large. `nan`: one number of them is none.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from edge_node.executor import Execution
from edge_node.main import main as node


def flip(tensor):
    return (-10 * tensor).astype(np.float32)


def nan(tensor):
    changed = tensor.copy()
    changed.flat[-1] = np.nan
    return changed


def main():
    at = sys.argv.index("--lie")
    lie = {"flip": flip, "nan": nan}[sys.argv[at + 1]]
    del sys.argv[at : at + 2]
    honest = Execution.contributions

    def contributions(self):
        for contribution in honest(self):
            tensors = {
                name: lie(tensor) if name.startswith("update/") else tensor
                for name, tensor in contribution.tensors.items()
            }
            yield replace(contribution, tensors=tensors)

    Execution.contributions = contributions
    node()
