"""The ratio π_θ/π_old and how it is bounded: options that PPO, GRPO and RLOO share.

    surrogate clipped   -min(ρ Â, clip(ρ, 1-ε, 1+ε_high) Â)      Schulman et al. 2017, arXiv:1707.06347, eq. 7
      clip_high         ε_high above ε                           DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 8 and 10
      dual_clip         at least c Â if Â < 0                     Ye et al. 2020, arXiv:1912.09729, eq. 5
    surrogate cispo     -sg(clip(ρ, 1-ε, 1+ε_high)) Â log π_θ    MiniMax-M1 2025, arXiv:2506.13585, eq. 4 and 5
    importance_cap      times min(π_old/π_sampler, C)            Yao et al. 2025, "Your Efficient RL Framework Secretly
                                                                 Brings You Off-Policy RL Training" (blog); V-trace's
                                                                 ρ̄: Espeholt et al. 2018, arXiv:1802.01561, eq. 1

A method says of what the ratio is, `ratio`: of each token; of the whole response, which is the product over its tokens;
or of the sequence, ρ = (π_θ(y|x)/π_old(y|x))^(1/|y|) (GSPO, Zheng et al. 2025, arXiv:2507.18071, eq. 7). All bounds,
also C, apply to this ratio. At ratio 1, all of them have the same gradient.
"""

from dataclasses import dataclass
from typing import Literal

from rlhf_core.common.batch import Outputs, Rollout
from rlhf_core.common.fields import setting
from rlhf_core.common.lazy import Tensor
from rlhf_core.maths.losses import cispo, clipped_surrogate, truncated_weights
from rlhf_core.maths.reductions import sequence_sum

# Options that change nothing at ratio 1.
RATIO_OPTIONS = ("clip", "clip_high", "dual_clip", "surrogate")


class HasRatio:
    """A method with a ratio: of each token, of the whole response, or of the sequence per token."""

    ratio: Literal["token", "response", "sequence"]


@dataclass(frozen=True, kw_only=True)
class ClippedRatio(HasRatio):
    """The surrogate of the policy, with its bounds on the ratio."""

    surrogate: Literal["clipped", "cispo"] = setting(
        "clipped",
        "clipped: the clip stops the gradient (PPO); cispo: it bounds the weight of log π (arXiv:2506.13585, eq. 4)",
    )
    clip: float = setting(0.2, "ε, lower and upper clip of the ratio; 1 for no lower bound", gt=0, le=1)
    clip_high: float | None = setting(
        None, "ε_high, upper clip of the ratio; null: as clip; DAPO has 0.28 (arXiv:2503.14476, eq. 8)", gt=0
    )
    dual_clip: float | None = setting(
        None, "c, bound of the ratio if the advantage is negative; null for none; 3 in arXiv:1912.09729, eq. 5", gt=1
    )
    importance_cap: float | None = setting(
        None, "C of the weight min(π_old/π_sampler, C), if the sampler differs from the trainer; null for none", gt=0
    )

    def check_ratio(self) -> None:
        """Raise ValueError for combinations that have no effect or an unsuitable bound."""
        if self.surrogate == "cispo" and self.dual_clip is not None:
            raise ValueError("dual_clip has no effect while surrogate is cispo, whose weight is bounded; leave it out")
        if self.ratio == "sequence" and self.clip == type(self).clip:
            raise ValueError(
                f"clip {self.clip} does not suit ratio sequence, whose root over |y| tokens stays close to 1; "
                "set clip to 3e-4 and clip_high to 4e-4 (arXiv:2507.18071, sec. 5.1)"
            )

    @property
    def upper_clip(self) -> float:
        """ε_high: the ratio is clipped above 1 + ε_high."""
        return self.clip if self.clip_high is None else self.clip_high

    def surrogate_losses(self, outputs: Outputs, batch: Rollout) -> Tensor:
        """The surrogate of each ratio, (B, R) for tokens, (B,) for responses."""
        logprobs, old_logprobs = self._of_ratio(outputs.logprobs, batch), self._of_ratio(batch.old_logprobs, batch)
        advantages = self._advantages(batch)
        if self.surrogate == "cispo":
            losses = cispo(logprobs, old_logprobs, advantages, self.clip, self.upper_clip)
        else:
            losses = clipped_surrogate(
                logprobs, old_logprobs, advantages, self.clip, self.upper_clip, dual_clip=self.dual_clip
            )
        if self.importance_cap is None:
            return losses
        sampler_logprobs = self._of_ratio(batch.sampler_logprobs, batch)
        return truncated_weights(old_logprobs, sampler_logprobs, self.importance_cap) * losses

    def clip_statistics(self, outputs: Outputs, batch: Rollout) -> dict[str, Tensor]:
        """Whether each ratio is outside its clip, and whether a bound changes the gradient, (B, R) or (B,)."""
        ratio = self._of_ratio(outputs.logprobs - batch.old_logprobs, batch).detach().exp()
        above, below = ratio - 1 > self.upper_clip, 1 - ratio > self.clip
        active = above | below
        if self.surrogate == "clipped":
            advantages = self._advantages(batch)
            too_low = below if self.dual_clip is None else below | (ratio > self.dual_clip)
            active = (above & (advantages > 0)) | (too_low & (advantages < 0))
        return {"clip_fraction": (above | below).float(), "clip_active_fraction": active.float()}

    def _of_ratio(self, values: Tensor, batch: Rollout) -> Tensor:
        """Log-probabilities of what the ratio is of: (B, R), or their sum or mean over the response, (B,)."""
        if self.ratio == "token":
            return values
        whole = sequence_sum(values, batch.response_mask)
        return whole / batch.lengths if self.ratio == "sequence" else whole

    def _advantages(self, batch: Rollout) -> Tensor:
        return batch.advantages if self.ratio == "token" else batch.advantages[:, 0]
