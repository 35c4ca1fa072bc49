"""`forward(**batch)` while it is exported, as of wrappers: PyTorch's exporter cannot have axes open there."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from keyword import iskeyword
from typing import Any

from torch import nn

__all__ = ["named_keywords"]


@contextmanager
def named_keywords(module: nn.Module, keywords: Collection[str]) -> Iterator[None]:
    """While it lasts `forward` says by name what of `keywords` its `**` takes; it does what it did."""
    signature = inspect.signature(module.forward)
    kept = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    known = {one.name for one in kept}
    more = [name for name in keywords if name not in known]
    sayable = all(name.isidentifier() and not iskeyword(name) for name in more)
    if len(kept) == len(signature.parameters) or not more or not sayable:
        yield
        return
    original, own = module.forward, "forward" in vars(module)

    def forward(*arguments: Any, **given: Any) -> Any:
        return original(*arguments, **given)

    each = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
    forward.__signature__ = inspect.Signature([*kept, *each])  # type: ignore[attr-defined]
    module.forward = forward
    try:
        yield
    finally:
        if own:
            module.forward = original
        else:
            del module.forward
