"""Estimate how long each stage takes, from a short measurement and the number of tokens that each stage processes.

A stage trains on tokens (forward, backward and AdamW), reads tokens (forward only) and samples tokens. `measure` times
each kind on this device with random weights of the configured shape. A model with more than MEASURED weights is cut to
fewer layers and its time is scaled by the weights. The interval shown assumes rows between half and all of the length
that prepare.max_prompt_tokens and prepare.max_response_tokens allow. It ignores other load on the machine.
"""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.commands.memory import SAMPLED_ROWS, model_shape
from rlhf_core.algorithms.base.config import OfflineConfig
from tasks.params.derived import stage_of
from tasks.params.schema import Params, algorithm_of
from tasks.problems.problem import Counts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

START = 8.0  # seconds of overhead per stage: imports, DVC, loading, saving
MEASURED = 20e6  # weights
BUDGET = {"cpu": 1e11, "cuda": 1e13}  # weights times tokens of one measured step, which takes about a second
REPEATS = 3
SHORTEST = 0.5  # as a fraction of the lengths that prepare allows


Span = tuple[float, float]  # lower and upper bound in seconds


@dataclass(frozen=True)
class Speed:
    """Seconds per token for a training step, for a forward pass, and for sampling."""

    train: float
    read: float
    sample: float


@dataclass(frozen=True)
class Work:
    """Number of full-length rows that a stage trains on, reads, and samples responses for."""

    stage: str
    trained: float = 0
    read: float = 0
    sampled: float = 0

    def seconds(self, speed: Speed, params: Params) -> Span:
        """Return the estimated time for rows of length SHORTEST and of full length."""
        response = params.prepare.max_response_tokens
        row = params.prepare.max_prompt_tokens + response
        full = row * (self.trained * speed.train + self.read * speed.read) + response * self.sampled * speed.sample
        return START + SHORTEST * full, START + full


def work(params: Params, rows: Counts, is_from_scratch: bool) -> list[Work]:
    """Return the work of each stage that runs a model."""
    sample, reward = params.sample, params.reward
    models = reward.members * (rows.preferences > 0) + (rows.judge > 0)
    stages = [
        Work("sft", trained=_steps(params.sft, rows.demonstrations)),
        Work("sample", sampled=rows.asked * sample.responses * len(sample.checkpoints)),
        Work("reward", trained=2 * models * _steps(reward, rows.preferences), sampled=models * reward.centre_prompts),
        *(_policy(params, name, rows) for name in params.policy.methods),
        _evaluation(params),
    ]
    return [Work("base", trained=_steps(params.base, rows.threads)), *stages] if is_from_scratch else stages


def _steps(config: OfflineConfig, units: int) -> int:
    """Return the number of units that a training on fixed data visits."""
    return int(config.total_steps(units)) * min(config.batch_size, units) if units else 0


def _policy(params: Params, name: str, rows: Counts) -> Work:
    algorithm, section = algorithm_of(params, name), params.policy.section(name)
    stage = stage_of(name)
    if algorithm.data == "none":
        return Work(stage)
    if algorithm.data == "best_of_n":
        sampled = min(algorithm.prompts, rows.prompts) * algorithm.best_of
        return Work(stage, trained=_steps(section, min(algorithm.prompts, rows.prompts)), read=sampled, sampled=sampled)
    if algorithm.data in ("pairs", "unpaired"):  # two rows per unit; the reference reads each row once
        return Work(stage, trained=2 * _steps(section, rows.preferences), read=2 * rows.preferences)
    responses = section.steps * section.rollout_size
    critic = algorithm.needs.critic
    trained = section.epochs * responses * (1 + critic)
    if algorithm.needs.trust_region:  # only the critic takes gradient steps; a Fisher product costs two of them
        trained = responses * (section.epochs + 2 * algorithm.cg_iterations * algorithm.fisher_fraction)
    return Work(stage, trained=trained, read=(3 + critic) * responses, sampled=responses)


def _evaluation(params: Params) -> Work:
    """Return the work of evaluation: final policies and the SFT model on test prompts, snapshots on development ones.

    Reading a response six times covers KL, reward model and judge.
    """
    evaluate = params.evaluate
    responses = evaluate.prompts + evaluate.development_prompts  # of the SFT model
    for name in params.policy.methods:
        section = params.policy.section(name)
        snapshots = getattr(section, "snapshots", 0)
        per_prompt = section.best_of if algorithm_of(params, name).data == "none" else 1
        responses += evaluate.prompts * per_prompt + snapshots * evaluate.development_prompts
    return Work("evaluate", read=6 * responses, sampled=responses)


def measure(config: "PretrainedConfig", params: Params, device: str) -> Speed:
    """Time a few steps of the model that `config` describes, in a few seconds."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(params.run.threads)
    shape = model_shape(config)
    cut = _cut(config, shape.weights)
    factory: Any = AutoModelForCausalLM  # untyped in transformers
    model = factory.from_config(cut, dtype=torch.float32).to(device)
    precision = torch.autocast(device, torch.bfloat16, enabled=params.run.precision == "bf16")
    weights = sum(parameter.numel() for parameter in model.parameters())
    prompt = params.prepare.max_prompt_tokens
    tokens = prompt + params.prepare.max_response_tokens
    rows = max(1, min(params.sft.micro_batch_size, int(BUDGET[device] / (weights * tokens))))
    ids = torch.randint(shape.vocabulary, (rows, tokens), device=device)
    optimizer = torch.optim.AdamW(model.parameters())

    def train() -> None:
        with precision:
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def read() -> None:
        with precision:
            model(input_ids=ids, use_cache=False)

    sampled = max(1, min(SAMPLED_ROWS, int(BUDGET[device] / (weights * prompt))))
    prompts = torch.randint(shape.vocabulary, (sampled, prompt), device=device)

    def sample(count: int) -> Callable[[], None]:
        settings = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": True, "pad_token_id": 0}
        return lambda: model.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)

    scale = shape.weights / weights
    train_time, read_time = _seconds(train, device), _seconds(read, device)
    sample_time = max(_seconds(sample(9), device) - _seconds(sample(1), device), 1e-9)
    return Speed(
        train=scale * train_time / (rows * tokens),
        read=scale * read_time / (rows * tokens),
        sample=scale * sample_time / (sampled * 8),
    )


def _cut(config: "PretrainedConfig", weights: int) -> "PretrainedConfig":
    """Return the config with fewer layers, so that about MEASURED weights remain."""
    cut = deepcopy(config)
    text = cut.get_text_config()
    text.num_hidden_layers = max(1, min(text.num_hidden_layers, int(text.num_hidden_layers * MEASURED / weights)))
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    return cut


def _seconds(step: Callable[[], None], device: str) -> float:
    """Return the median time of REPEATS steps, after one warm-up step."""
    import torch

    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[REPEATS // 2]


def together(spans: Mapping[str, Span], parallel: int) -> Span:
    """Return the duration of the whole run: stages in sequence, but up to `parallel` policies at the same time."""
    policies = [span for stage, span in spans.items() if "@" in stage]
    others = [span for stage, span in spans.items() if "@" not in stage]
    ends = []
    for end in (0, 1):
        side_by_side = max(*(span[end] for span in policies), sum(span[end] for span in policies) / parallel)
        ends.append(sum(span[end] for span in others) + side_by_side)
    return ends[0], ends[1]


def span_text(span: Span) -> str:
    """Format a span with two significant digits: `20–40 s`, `3–6 min`, `1.5–3 h`."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if span[1] >= 1.5 * size or size == 1:
            low, high = (f"{value / size:.2g}" for value in span)
            return f"{low} {unit}" if low == high else f"{low}–{high} {unit}"
    raise AssertionError
