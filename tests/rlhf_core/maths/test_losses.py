"""The pure functions of rlhf_core against numbers worked by hand."""

import math
from statistics import fmean, pstdev

import pytest
import torch

from rlhf_core.maths.accuracy import correct
from rlhf_core.maths.advantages import equal_groups, gae, group_standardize, token_rewards, whiten
from rlhf_core.maths.kl import adapted_kl_coef, k3, kl_k1, kl_k2, kl_k3
from rlhf_core.maths.losses import (
    bradley_terry,
    clipped_surrogate,
    cross_entropy,
    dpo,
    exact_kl,
    token_entropies,
    token_logprobs,
    value_loss,
)
from rlhf_core.maths.metrics import bootstrap_mean, correlation, distinct_n, expected_calibration_error, pair_metrics
from rlhf_core.maths.reductions import fixed_length, sequence_mean, sequence_sum, token_mean, unit_mean

MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
LOG2, LOG3 = math.log(2), math.log(3)


def close(found, expected):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), atol=1e-6, rtol=1e-5)


# losses


def test_token_logprobs():
    """Logits 0 and log 3: probabilities 1/4, 3/4. At temperature ½ the logits double: 1/10 and 9/10."""
    logits = torch.tensor([[0.0, LOG3], [0.0, LOG3]])
    close(token_logprobs(logits, torch.tensor([0, 1])), [math.log(1 / 4), math.log(3 / 4)])
    close(token_logprobs(logits, torch.tensor([0, 1]), temperature=0.5), [math.log(1 / 10), math.log(9 / 10)])


def test_token_entropies():
    """¼, ¾: ¼ log 4 + ¾ log 4/3 = log 4 - ¾ log 3. Three equal logits: log 3. A token with probability 1: 0."""
    close(token_entropies(torch.tensor([0.0, LOG3])), 2 * LOG2 - 0.75 * LOG3)
    close(token_entropies(torch.full((3,), 7.0)), LOG3)
    close(token_entropies(torch.tensor([200.0, 0.0, 0.0])), 0.0)
    # At temperature ½: 1/10, 9/10.
    close(token_entropies(torch.tensor([0.0, LOG3]), temperature=0.5), 0.1 * math.log(10) + 0.9 * math.log(10 / 9))


@pytest.mark.pitfall(12)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_logprob_is_never_above_zero(dtype):
    """The most likely token of 10 000 random rows and of extreme rows."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10_000, 7, generator=generator) * torch.logspace(-2, 4, 10_000)[:, None]
    logits = torch.cat([logits, torch.tensor([[1e4] * 7, [-1e4] * 7, [1e4, -1e4, 0, 0, 0, 0, 0]])]).to(dtype)
    logprobs = token_logprobs(logits, logits.argmax(-1))
    assert logprobs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(logprobs).all()
    assert (logprobs <= 0).all()
    # Seven equal logits of any size: 1/7 each, so -log 7. A logit larger by 20 000 has probability 1.
    expected = torch.tensor([-math.log(7), -math.log(7), 0.0]).to(logprobs.dtype)
    torch.testing.assert_close(logprobs[-3:], expected, atol=1e-3, rtol=0)


@pytest.mark.pitfall(12)
def test_probabilities_near_one_keep_their_logprob_in_bf16():
    """Logits 8 and 0: -log(1 + e^-8) = -0.000335, which bf16 arithmetic would round to 0."""
    logits = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16)
    assert token_logprobs(logits, torch.tensor([0])).item() == pytest.approx(-math.log1p(math.exp(-8)), abs=1e-6)
    entropy = math.log1p(math.exp(-8)) + 8 * math.exp(-8) / (1 + math.exp(-8))
    assert token_entropies(logits).item() == pytest.approx(entropy, abs=1e-6)


def test_exact_kl():
    """π = (¼, ¾), π_ref = (½, ½): ¼ log ½ + ¾ log 3/2 = ¾ log 3 - log 2. Equal distributions: 0."""
    logits, ref = torch.tensor([0.0, LOG3]), torch.tensor([5.0, 5.0])
    close(exact_kl(logits, ref), 0.75 * LOG3 - LOG2)
    close(exact_kl(logits, logits + 3), 0.0)


def test_cross_entropy():
    assert cross_entropy(torch.tensor([[-0.5, 0.0]])).tolist() == [[0.5, 0.0]]


def test_bradley_terry():
    """Gaps 0 and log 3: -log ½ and -log ¾. With margin log 3 the second gap is 0."""
    chosen, rejected = torch.tensor([1.0, LOG3]), torch.tensor([1.0, 0.0])
    close(bradley_terry(chosen, rejected), [LOG2, 2 * LOG2 - LOG3])
    close(bradley_terry(chosen, rejected, margin=torch.tensor([0.0, LOG3])), [LOG2, LOG2])


def test_dpo():
    """β = ½, log-ratios 2 log 3 and 0: -log σ(log 3) = log 4/3. Swapped: log 4."""
    first, second = torch.tensor([2 * LOG3, 0.0]), torch.tensor([0.0, 2 * LOG3])
    close(dpo(first, second, beta=0.5), [2 * LOG2 - LOG3, 2 * LOG2])


def test_clipped_surrogate():
    """Ratios 1.5, ½ and 1.1 at ε = 0.2.

    Minima for Â = 1: of 1.5 and 1.2; ½ and 0.8; 1.1 and 1.1. For Â = -1: of -1.5 and -1.2; -½ and -0.8; -1.1 and -1.1.
    """
    logprobs = torch.tensor([1.5, 0.5, 1.1]).log().repeat(2, 1)
    advantages = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    found = clipped_surrogate(logprobs, torch.zeros(2, 3), advantages, clip=0.2)
    close(found, [[-1.2, -0.5, -1.1], [1.5, 0.8, 1.1]])


def test_clipped_surrogate_gradient_vanishes_only_where_the_clip_binds():
    """Ratio 1.5 is clipped for Â = 1, so the gradient is 0; for Â = -1, the gradient with respect to log π is 1.5."""
    logprobs = torch.tensor([1.5, 1.5]).log().requires_grad_()
    clipped_surrogate(logprobs, torch.zeros(2), torch.tensor([1.0, -1.0]), clip=0.2).sum().backward()
    close(logprobs.grad, [0.0, 1.5])


def test_value_loss():
    """V = 2, V_old = 1, ε = 0.2: clipped to 1.2. G = 3: 1 and (1.8)² = 3.24. G = 1: 1 and 0.04."""
    values, old = torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0])
    returns = torch.tensor([3.0, 1.0])
    close(value_loss(values, old, returns, clip=0.2), [3.24, 1.0])
    close(value_loss(values, old, returns, clip=None), [1.0, 1.0])


# kl


def test_kl_estimators():
    """d = log 2 and -log 2: k1 ±log 2, k2 (log 2)²/2, k3 = ½ - 1 + log 2 and 2 - 1 - log 2."""
    logprobs, ref = torch.tensor([LOG2, 0.0]), torch.tensor([0.0, LOG2])
    close(kl_k1(logprobs, ref), [LOG2, -LOG2])
    close(kl_k2(logprobs, ref), [LOG2**2 / 2] * 2)
    close(kl_k3(logprobs, ref), [LOG2 - 0.5, 1 - LOG2])
    assert torch.equal(kl_k3(logprobs, ref), k3(ref - logprobs))


def test_kl_estimators_against_their_exact_expectation():
    """π = (¼, ¾), π_ref = (½, ½): the mean of k1 and k3 is the KL = ¾ log 3 - log 2; the mean of k2 differs."""
    policy, reference = torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5])
    logprobs, ref = policy.log(), reference.log()
    for estimator in (kl_k1, kl_k3):
        close((policy * estimator(logprobs, ref)).sum(), 0.75 * LOG3 - LOG2)
    close((policy * kl_k2(logprobs, ref)).sum(), LOG2**2 / 8 + 0.375 * math.log(1.5) ** 2)


def test_adapted_kl_coef():
    """KL 9 with target 6: error ½, clipped to 0.2; 0.02 · (1 + 0.2 · 500 / 1000) = 0.022."""
    assert adapted_kl_coef(0.02, 9.0, 6.0, 1000, 500) == pytest.approx(0.022)


# advantages


def test_token_rewards():
    """β = ½, KL 1, 2, 3 and score 10: -½, -1, 10 - 1½. A row of one token with KL -2 and score -1: 1 - 1 = 0."""
    kl = torch.tensor([[1.0, 2.0, 3.0], [-2.0, 7.0, 7.0]])
    close(token_rewards(torch.tensor([10.0, -1.0]), kl, 0.5, MASK), [[-0.5, -1.0, 8.5], [0.0, 0.0, 0.0]])


def test_gae():
    """γ = ½, λ = ½. Row 0: rewards 1, 0, 4, values 2, 4, 2.

    δ = 1 + ½·4 - 2 = 1; 0 + ½·2 - 4 = -3; 4 - 2 = 2, since the value after the last token is 0.
    Â = 2; -3 + ¼·2 = -2.5; 1 + ¼·(-2.5) = 0.375. Returns add the values: 2.375, 1.5, 4.
    Row 1 ends after one token: Â = 3 - 1 = 2, independent of the padding.
    """
    rewards = torch.tensor([[1.0, 0.0, 4.0], [3.0, 9.0, 9.0]])
    values = torch.tensor([[2.0, 4.0, 2.0], [1.0, 9.0, 9.0]])
    advantages, returns = gae(rewards, values, MASK, gamma=0.5, lam=0.5)
    close(advantages, [[0.375, -2.5, 2.0], [2.0, 0.0, 0.0]])
    close(returns, [[2.375, 1.5, 4.0], [3.0, 0.0, 0.0]])


def test_gae_for_extreme_values_of_lambda():
    """λ = 0 gives the TD residual; λ = γ = 1 gives the return-to-go minus the value: 5 - 2, 4 - 4, 4 - 2."""
    rewards, values, mask = torch.tensor([[1.0, 0.0, 4.0]]), torch.tensor([[2.0, 4.0, 2.0]]), MASK[:1]
    close(gae(rewards, values, mask, 1.0, 0.0)[0], [[3.0, -2.0, 2.0]])
    close(gae(rewards, values, mask, 1.0, 1.0)[0], [[3.0, 0.0, 2.0]])


def test_whiten():
    """0, 2, 4, 6: mean 3, squares 20, sample variance 20/3."""
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    found = whiten(torch.tensor([[0.0, 2.0, 4.0], [6.0, 9.0, 9.0]]), mask)
    std = math.sqrt(20 / 3)
    close(found, [[-3 / std, -1 / std, 1 / std], [3 / std, 0.0, 0.0]])


def test_group_standardize():
    """Group 1, 3: mean 2, population std 1, sample std √2. Group 0, 10: mean 5, std 5 and 5√2."""
    scores = torch.tensor([1.0, 3.0, 0.0, 10.0])
    close(group_standardize(scores, 2, eps=1.0), [-1 / 2, 1 / 2, -5 / 6, 5 / 6])
    half = 1 / math.sqrt(2)
    close(group_standardize(scores, 2, unbiased_std=True, eps=1e-9), [-half, half, -half, half])
    close(group_standardize(scores, 2, std="none"), [-1.0, 1.0, -5.0, 5.0])
    assert equal_groups(torch.tensor([1.0, 1.0, 1.0, 2.0]), 2).tolist() == [True, False]


@pytest.mark.parametrize(("rows", "size"), [(3, 2), (4, 1)])
def test_group_standardize_refuses_incomplete_groups(rows, size):
    with pytest.raises(ValueError, match=f"{rows} rows are not groups of {size}"):
        group_standardize(torch.zeros(rows), size)


# reductions


def test_reductions():
    """Rows of 3 and 1 tokens: the weight of a token is ¼; its row's ½ divided by its length; or 1 / (5 · 2)."""
    close(token_mean(MASK), [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]])
    close(sequence_mean(MASK), [[1 / 6, 1 / 6, 1 / 6], [0.5, 0.0, 0.0]])
    close(fixed_length(MASK, 5), [[0.1, 0.1, 0.1], [0.1, 0.0, 0.0]])
    close(unit_mean(4, torch.device("cpu")), [0.25] * 4)
    close(sequence_sum(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), MASK), [6.0, 4.0])


# metrics


def test_a_tie_is_half_correct():
    assert correct(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 2.0, 1.0])).tolist() == [0.0, 0.5, 1.0]
    assert correct(torch.tensor([0.25, 0.5, 0.75]), 0.5).tolist() == [0.0, 0.5, 1.0]


def test_pair_metrics():
    """Margins log 3, 0, -log 3, log 3: accuracy (1 + ½ + 0 + 1)/4.

    Log-loss (2 log 4/3 + log 2 + log 4)/4; its standard error is the standard deviation of the four divided by √4.
    Calibration: three pairs in the bin of ¾, two of them right: |¾ - ⅔| · ¾; one in the bin of ½, half right: 0.
    """
    found = pair_metrics(torch.tensor([LOG3, 1.0, 0.0, LOG3]), torch.tensor([0.0, 1.0, LOG3, 0.0]))
    losses = [2 * LOG2 - LOG3, LOG2, 2 * LOG2, 2 * LOG2 - LOG3]
    expected = {"accuracy": 0.625, "log_loss": fmean(losses), "log_loss_se": pstdev(losses) / 2, "ece": 0.0625}
    assert found == pytest.approx(expected, abs=1e-6)


def test_expected_calibration_error():
    """Confidence 0.9 and three of four right: |0.9 - 0.75|. Confidence 1 and right: 0. Confidence 1 and wrong: 1.

    One wrong at confidence 0.6 (error 0.6) and one right at 0.9 (error 0.1): both count, (0.6 + 0.1) / 2.
    """
    assert expected_calibration_error(torch.tensor([0.9, 0.9, 0.9, 0.1])) == pytest.approx(0.15)
    assert expected_calibration_error(torch.tensor([1.0, 1.0])) == 0.0
    assert expected_calibration_error(torch.tensor([0.0])) == 1.0
    assert expected_calibration_error(torch.tensor([0.4, 0.9])) == pytest.approx(0.35)


def test_correlation():
    """1, 2, 3 with 1, 3, 2: covariance sum 1, squares 2 and 2: ½. Reversed: -1. With a constant: undefined."""
    first = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(first, torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(0.5)
    assert correlation(first, -first) == pytest.approx(-1.0)
    assert correlation(first, torch.ones(3)) is None


def test_distinct_n():
    """ "a a b" and "a b": words a a b a b, 2 of 5 distinct; pairs aa ab ab, 2 of 3. Without pairs: 0."""
    assert distinct_n(["a a b", "a b"], 1) == 2 / 5
    assert distinct_n(["a a b", "a b"], 2) == 2 / 3
    assert distinct_n(["a", ""], 2) == 0.0


def test_bootstrap_mean():
    """The interval of a constant has width 0. For 500 zeros and 500 ones it is ½ ∓ 1.96 · ½/√1000 = ½ ∓ 0.031."""
    assert bootstrap_mean([0.25] * 10, 200, seed=0) == (0.25, 0.25, 0.25)
    mean, low, high = bootstrap_mean([0.0, 1.0] * 500, 4000, seed=0)
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.469, 0.531), abs=0.003)
    assert bootstrap_mean([0.0, 1.0] * 500, 4000, seed=0) == (mean, low, high)
