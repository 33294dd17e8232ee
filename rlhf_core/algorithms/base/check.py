"""Whether the options of a method and of its loop fit together. The check needs no model."""

import math

from rlhf_core.algorithms.base.algorithm import OnPolicyAlgorithm
from rlhf_core.algorithms.base.config import OnlineConfig


def check_loop(config: OnlineConfig, algorithm: OnPolicyAlgorithm) -> None:
    """Raise ValueError unless rollouts hold whole groups, minibatches whole units, and every option has an effect."""
    size, together = algorithm.group_size, algorithm.rows_per_unit
    if config.rollout_size % size:
        raise ValueError(f"rollout_size {config.rollout_size} is not a multiple of group_size {size}; change one")
    if config.minibatch_size % together or config.micro_batch_size % together:
        raise ValueError(
            f"minibatch_size {config.minibatch_size} and micro_batch_size {config.micro_batch_size} must be multiples "
            f"of {together}, because this method compares {together} responses to a prompt; change them"
        )
    if config.rollout_size % config.minibatch_size:
        raise ValueError(_whole_minibatches(config, size, together))
    algorithm.check_rollouts(config)
    if config.makes_one_step:
        # In the only step on a rollout, the ratio π_θ/π_old is 1 and V is V_old.
        for name in algorithm.reuse_options:
            if getattr(algorithm, name) != getattr(type(algorithm), name):
                raise ValueError(f"{name} has no effect with one step per rollout; leave it out, or raise epochs")


def _whole_minibatches(config: OnlineConfig, size: int, together: int) -> str:
    """The message for a rollout that is not a whole number of minibatches, with the nearest values that fit."""
    rollout, minibatch = config.rollout_size, config.minibatch_size
    step = math.lcm(minibatch, size)
    rollouts = [number for number in (rollout // step * step, (rollout // step + 1) * step) if number]
    divisors = [number for number in range(together, rollout + 1, together) if rollout % number == 0]
    fits = f", or minibatch_size to {min(divisors, key=lambda number: abs(number - minibatch))}" if divisors else ""
    return (
        f"rollout_size {rollout} is not a multiple of minibatch_size {minibatch}, so the last step on a rollout would "
        f"see fewer responses; set rollout_size to {' or '.join(map(str, rollouts))}{fits}"
    )
