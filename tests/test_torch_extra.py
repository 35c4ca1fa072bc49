"""PyTorch is an extra: nothing imports it but edge_attention.torch, which says how it is had."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_package_does_not_import_it() -> None:
    everything = "edge_attention, edge_attention.client.sync, edge_attention.cli.main, edge_node.main"
    done = python(f"import sys, {everything}; print([n for n in sys.modules if n.split('.')[0] == 'torch'])")
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_without_it_the_error_says_how_it_is_had() -> None:
    # `None` is what Python takes for a module that is not there, whether or not it is installed.
    done = python("import sys; sys.modules['torch'] = None; import edge_attention.torch")
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    assert last == (
        "ModuleNotFoundError: edge_attention.torch needs torch, which is not installed: "
        "pip install 'edge-attention[torch]'"
    )


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is installed here")
def test_it_is_not_there_and_the_error_is_the_same() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'edge-attention\[torch\]'"):
        import edge_attention.torch  # noqa: F401


def test_nobody_else_names_it() -> None:
    """Import-linter holds the line, too; this also sees imports of what is not installed."""
    allowed = ROOT / "edge_attention/torch"
    for top in ("edge_attention", "edge_node", "aggregator", "protos"):
        for path in (ROOT / top).rglob("*.py"):
            if allowed in path.parents:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    assert name.partition(".")[0] not in ("torch", "transformers", "onnxscript"), path
                    assert not name.startswith("edge_attention.torch"), path
