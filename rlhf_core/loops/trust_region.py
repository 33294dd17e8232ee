"""The natural-gradient step of TRPO. Schulman et al. 2015, arXiv:1502.05477, sec. 6 and appendix C.

Maximise the surrogate Σ w ρ Â subject to Σ w KL(π_old‖π_θ) <= δ: solve F x = g by conjugate gradient with
Fisher-vector products, scale x to the trust region, and halve it until the surrogate rises and the KL is within δ.
KL and Fisher matrix are exact sums over the vocabulary at the states of the rollout, with the same weights w.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from transformers import PreTrainedModel

from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.errors import UserError
from rlhf_core.loops.common.run import Metrics
from rlhf_core.maths.losses import exact_kl
from rlhf_core.models.forward import policy_outputs, response_logits
from rlhf_core.models.sharing import shared_copy

# The microbatches of a rollout, each with its slice of the weights.
Parts = list[tuple[Rollout, Tensor]]


class TrustRegionAlgorithm(Protocol):
    """What the trust-region step needs from an algorithm."""

    max_kl: float  # δ, nats per token
    cg_iterations: int
    cg_damping: float
    fisher_fraction: float
    line_search_steps: int

    def surrogate_losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """-ρ Â, (B, R)."""
        ...

    def surrogate_weights(self, batch: Rollout) -> Tensor:
        """(B, R), summing to 1."""
        ...


class TrustRegion:
    """Updates one policy in place. A copy of the policy serves as π_old and needs the same memory again."""

    def __init__(
        self, policy: PreTrainedModel, algorithm: TrustRegionAlgorithm, micro_rows: int, temperature: float
    ) -> None:
        self.policy, self.algorithm = policy, algorithm
        self.micro_rows, self.temperature = micro_rows, temperature
        self.old = shared_copy(policy).requires_grad_(False)
        self.parameters = [p for p in policy.parameters() if p.requires_grad]

    def step(self, rollout: Rollout, scale: float) -> Metrics:
        """Take one step with δ = scale · max_kl.

        If the line search accepts no step length, the weights do not change and `line_search_failed` is 1.

        Raises:
            UserError: if the gradient is not finite; the weights are unchanged.
        """
        limit = self.algorithm.max_kl * scale
        self.old.load_state_dict(self.policy.state_dict())
        parts = self._parts(rollout)
        before, gradient = self._surrogate(parts, with_gradient=True)
        if not bool(torch.isfinite(gradient).all()):
            raise UserError(
                "the gradient of the surrogate is not finite; the weights were not changed. Check the rewards."
            )
        metrics = {
            "surrogate": before,
            "surrogate_gain": 0.0,
            "trust_region_kl": 0.0,
            "trust_region_limit": limit,
            "line_search_failed": 0.0,
        }
        if not bool(gradient.any()):
            return metrics
        some = self._parts(rollout.select(slice(0, math.ceil(rollout.rows * self.algorithm.fisher_fraction))))
        direction = conjugate_gradient(
            lambda vector: self._fisher_product(some, vector), gradient, self.algorithm.cg_iterations
        )
        curvature = direction @ self._fisher_product(some, direction)
        full_step = direction * torch.sqrt(2 * limit / curvature)
        return metrics | self._line_search(parts, full_step, before, limit)

    def _line_search(self, parts: Parts, full_step: Tensor, before: float, limit: float) -> Metrics:
        start = parameters_to_vector(self.parameters).detach().clone()
        for halvings in range(self.algorithm.line_search_steps):
            vector_to_parameters(start + full_step * 0.5**halvings, self.parameters)
            after, _ = self._surrogate(parts, with_gradient=False)
            kl = self._mean_kl(parts)
            if after > before and kl <= limit:
                return {
                    "surrogate_gain": after - before,
                    "trust_region_kl": kl,
                    "line_search_halvings": float(halvings),
                    "line_search_failed": 0.0,
                }
        vector_to_parameters(start, self.parameters)
        return {"line_search_halvings": float(self.algorithm.line_search_steps), "line_search_failed": 1.0}

    def _parts(self, rollout: Rollout) -> Parts:
        weights = self.algorithm.surrogate_weights(rollout)
        starts = range(0, rollout.rows, self.micro_rows)
        slices = [slice(start, start + self.micro_rows) for start in starts]
        return [(rollout.select(rows), weights[rows]) for rows in slices]

    def _surrogate(self, parts: Parts, *, with_gradient: bool) -> tuple[float, Tensor]:
        """Σ w ρ Â, and its gradient as one vector (zeros without `with_gradient`)."""
        total = 0.0
        gradient = torch.zeros_like(parameters_to_vector(self.parameters))
        with torch.set_grad_enabled(with_gradient):
            for batch, weights in parts:
                outputs = policy_outputs(self.policy, batch, temperature=self.temperature)
                surrogate = -(self.algorithm.surrogate_losses(outputs, batch) * weights).sum()
                total += surrogate.item()
                if with_gradient:
                    gradient += _flat(torch.autograd.grad(surrogate, self.parameters))
        return total, gradient

    @torch.no_grad()
    def _mean_kl(self, parts: Parts) -> float:
        """Σ w KL(π_old‖π_θ) in nats per token."""
        total = 0.0
        for batch, weights in parts:
            kl = exact_kl(response_logits(self.old, batch), response_logits(self.policy, batch), self.temperature)
            total += (kl.masked_fill(batch.response_mask == 0, 0.0) * weights).sum().item()
        return total

    def _fisher_product(self, parts: Parts, vector: Tensor) -> Tensor:
        """(F + damping) v. The Fisher matrix F is the Hessian of KL(π_old‖π_θ) at θ = θ_old."""
        product = self.algorithm.cg_damping * vector
        for batch, weights in parts:
            # Other attention kernels have no second derivative. A checkpointed layer runs again in the backward pass.
            with sdpa_kernel(SDPBackend.MATH):
                logits = response_logits(self.policy, batch)
                kl = exact_kl(logits.detach(), logits, self.temperature)
                mean = (kl.masked_fill(batch.response_mask == 0, 0.0) * weights).sum()
                slope = _flat(torch.autograd.grad(mean, self.parameters, create_graph=True))
                product = product + _flat(torch.autograd.grad(slope @ vector, self.parameters))
        return product


def conjugate_gradient(product: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> Tensor:
    """Solve A x = target approximately, (M,) -> (M,); A is symmetric positive definite and product(v) = A v."""
    solution = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squares = residual @ residual
    for _ in range(iterations):
        image = product(direction)
        length = squares / (direction @ image)
        solution += length * direction
        residual -= length * image
        last, squares = squares, residual @ residual
        if squares < 1e-10 * (target @ target):
            break
        direction = residual + squares / last * direction
    return solution


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
