"""Metrics of reward models and of sets of texts."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.maths.accuracy import correct


def pair_metrics(
    chosen: Tensor, rejected: Tensor, link: Literal["logistic", "normal"] | None = "logistic"
) -> dict[str, float]:
    """Accuracy (a tie counts half), log-loss in nats with its standard error, and ECE, from two (N,) score tensors.

    The probability that chosen is better is σ(r_w - r_l), or Φ(r_w - r_l) with the normal link. Without a link
    (regression on ratings) the scores define no probabilities, and the accuracy is the only metric.
    """
    margin = chosen - rejected
    metrics = {"accuracy": correct(chosen, rejected).mean().item()}
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
    """Mean |confidence - accuracy| over equal-width bins of confidence, weighted by bin size. Guo et al. 2017.

    probabilities: (N,), of the observed outcomes. The prediction for a pair is the side that the model favours: its
    confidence is max(p, 1-p) in [½, 1]; it is correct if p > ½ and half correct if p = ½.
    """
    confidence = torch.maximum(probabilities, 1 - probabilities)
    right = correct(probabilities, 0.5)
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    error = 0.0
    for number in range(bins):
        inside = index == number
        if inside.any():
            gap = confidence[inside].mean() - right[inside].mean()
            error += (gap.abs() * inside.float().mean()).item()
    return error


def correlation(first: Tensor, second: Tensor) -> float | None:
    """Pearson's r of two (N,) tensors; None if one of them is constant."""
    first, second = first.double() - first.double().mean(), second.double() - second.double().mean()
    scale = first.norm() * second.norm()
    return None if scale == 0 else ((first @ second) / scale).item()


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams divided by all word n-grams, over all texts together. Li et al. 2016, arXiv:1510.03055."""
    grams = [tuple(words[i : i + n]) for words in (text.split() for text in texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def bootstrap_mean(values: Sequence[float], resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean with its 95 % percentile bootstrap interval; items (prompts) are resampled with replacement."""
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = data[generator.integers(0, len(data), (resamples, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(data.mean()), float(low), float(high)
