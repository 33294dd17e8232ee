"""The optimiser of every training: AdamW, or AdamW with moments in 8 bits."""

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_core.algorithms.base.config import OptimizerConfig
from rlhf_core.common.device import require_bitsandbytes


def make_optimizer(config: OptimizerConfig, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW on parameter groups, each with its parameters and learning rate (`params`, `lr`).

    The fused implementation makes one pass over the weights and needs no copy of them. Moments in 8 bits follow
    Dettmers et al. 2022 (arXiv:2110.02861); those of small tensors remain float32.

    Raises:
        UserError: 8-bit moments need bitsandbytes, which is not installed.
    """
    eps, weight_decay = config.adam_eps, config.weight_decay
    if config.optimizer == "adamw_8bit":
        require_bitsandbytes("optimizer is adamw_8bit", "set optimizer to adamw")
        from bitsandbytes.optim import AdamW8bit

        optimizer: torch.optim.Optimizer = AdamW8bit(list(groups), eps=eps, weight_decay=weight_decay)
        return optimizer
    return torch.optim.AdamW(list(groups), eps=eps, weight_decay=weight_decay, fused=True)
