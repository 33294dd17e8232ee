"""Numbers that describe a reward model or a set of texts."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def pair_metrics(
    chosen: Tensor, rejected: Tensor, link: Literal["logistic", "normal"] | None = "logistic"
) -> dict[str, float]:
    """Accuracy (equal scores are half right), log-loss in nats with its standard error, calibration; (N,) twice.

    The probability that chosen is the better one is σ(r_w - r_l), or Φ(r_w - r_l) with the normal link. With no link
    (regression on ratings) scores say nothing about probabilities, and there is only the accuracy.
    """
    margin = chosen - rejected
    metrics = {"accuracy": ((margin > 0).float() + 0.5 * (margin == 0).float()).mean().item()}
    if link is not None:
        normal = link == "normal"
        log_probability = torch.special.log_ndtr(margin) if normal else F.logsigmoid(margin)
        metrics["log_loss"] = -log_probability.mean().item()
        metrics["log_loss_se"] = (log_probability.std(correction=0) / len(margin) ** 0.5).item()
        metrics["ece"] = expected_calibration_error(torch.special.ndtr(margin) if normal else margin.sigmoid())
    return metrics


def root_mean_square(errors: Tensor) -> float:
    """√(mean e²), (N,)."""
    return errors.square().mean().sqrt().item()


def expected_calibration_error(probabilities: Tensor, bins: int = 10) -> float:
    """Mean |confidence - accuracy| over equal-width bins of confidence, weighted by their size. Guo et al. 2017.

    `probabilities` (N,) are those given to the outcome that happened. Each pair counts with the side the model
    favours: confidence max(p, 1-p) in [½, 1], right if p > ½, half right if p = ½.
    """
    confidence = torch.maximum(probabilities, 1 - probabilities)
    right = (probabilities > 0.5).float() + 0.5 * (probabilities == 0.5).float()
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    error = 0.0
    for number in range(bins):
        inside = index == number
        if inside.any():
            gap = confidence[inside].mean() - right[inside].mean()
            error += (gap.abs() * inside.float().mean()).item()
    return error


def correlation(first: Tensor, second: Tensor) -> float | None:
    """Pearson's r of two (N,) tensors; None where one of them is constant."""
    first, second = first.double() - first.double().mean(), second.double() - second.double().mean()
    scale = first.norm() * second.norm()
    return None if scale == 0 else ((first @ second) / scale).item()


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams of the texts together (Li et al. 2016, arXiv:1510.03055)."""
    grams = [tuple(words[i : i + n]) for words in (text.split() for text in texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def bootstrap_mean(values: Sequence[float], resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean and its 95 % percentile bootstrap interval, items (prompts) resampled with replacement."""
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = data[generator.integers(0, len(data), (resamples, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(data.mean()), float(low), float(high)
