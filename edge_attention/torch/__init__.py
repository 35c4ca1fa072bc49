"""PyTorch in and out: modules as files that the fleet trains, trained values back, attention over the fleet.

    from edge_attention.torch import FleetAttention, export, load

    report = export(module, example, "model.onnx")     # then train it as any file: docs/pytorch.md
    load(module, run)                                   # every trained value is in the module again

`pip install 'edge-attention[torch]'`. No other part of this project imports PyTorch: nodes and the aggregator
never need it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_attention.torch.attention import FleetAttention as FleetAttention
    from edge_attention.torch.exporting import export as export
    from edge_attention.torch.loading import Restored as Restored
    from edge_attention.torch.loading import load as load
    from edge_attention.torch.report import ExportReport as ExportReport
    from edge_attention.torch.report import ExportWarning as ExportWarning

__all__ = ["ExportReport", "ExportWarning", "FleetAttention", "Restored", "export", "load"]

_HOME = {
    "ExportReport": "report",
    "ExportWarning": "report",
    "FleetAttention": "attention",
    "Restored": "loading",
    "export": "exporting",
    "load": "loading",
}

for _needed in ("torch", "onnx"):
    if find_spec(_needed) is None:
        raise ModuleNotFoundError(
            f"edge_attention.torch needs {_needed}, which is not installed: "
            "pip install 'edge-attention[torch]'",
            name=_needed,
        )


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"edge_attention.torch.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edge_attention.torch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
