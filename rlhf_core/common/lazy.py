"""Lazy import of torch for modules that validation of parameters needs: importing torch takes seconds.

Type checkers see torch itself. At run time, `torch` and `F` import it when an attribute is first read. `Tensor` is only
for annotations. Quote an annotation that reads an attribute, such as "torch.device".
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["F", "Tensor", "torch"]

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    Tensor = Any

    class _Lazy:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(self._name), attribute)

    torch, F = _Lazy("torch"), _Lazy("torch.nn.functional")
