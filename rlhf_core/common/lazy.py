"""torch for the modules that parameters are validated with: imported at its first use, since importing takes seconds.

Type checkers see torch itself. At run time `torch` and `F` import it when an attribute is first read, and `Tensor`
serves annotations only. Quote an annotation that reads an attribute, such as "torch.device".
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
