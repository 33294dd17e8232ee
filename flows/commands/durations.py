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

from rlhf_core.algorithms.base.algorithm import Work
from tasks.files import declared
from tasks.params.derived import stage_of
from tasks.params.schema import Params, algorithm_of
from tasks.problems.problem import Counts
from tasks.runtime.memory import model_shape

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


def seconds(work: Work, speed: Speed, params: Params) -> Span:
    """Return the estimated time of a stage for rows of length SHORTEST and of full length."""
    response = params.prepare.max_response_tokens
    row = params.prepare.max_prompt_tokens + response
    full = row * (work.trained * speed.train + work.read * speed.read) + response * work.sampled * speed.sample
    return START + SHORTEST * full, START + full


def work(params: Params, rows: Counts, is_from_scratch: bool) -> dict[str, Work]:
    """Return the work of each declared stage that runs a model, by name; for a policy, from its method."""
    found: dict[str, Work] = {}
    for stage in declared.STAGES:
        if stage.name == declared.REWARDS:
            found |= {f"{stage.name}@{name}": _members(params, rows) for name in params.reward_models.names}
        elif stage.is_matrix:
            for name in params.policy.methods:
                if declared.of(stage_of(name)) == stage:
                    section = params.policy.section(name)
                    found[stage_of(name)] = algorithm_of(params, name).work(section, rows.prompts, rows.preferences)
        elif stage.loads is not None and (is_from_scratch or stage != declared.BASE):
            known = STAGE_WORK.get(stage.name)
            found[stage.name] = known(params, rows) if known else Work()
    return found


def _reward(params: Params, rows: Counts) -> Work:
    """Return the work of the members and of a judge model: pairs, and samples on which the scores are centred."""
    judge = Work(
        trained=2 * (rows.judge > 0) * params.reward.visits(rows.preferences),
        sampled=(rows.judge > 0) * params.reward.centre_prompts,
    )
    members = Work() if params.reward_models.names else _members(params, rows)
    return Work(trained=members.trained + judge.trained, sampled=members.sampled + judge.sampled)


def _members(params: Params, rows: Counts) -> Work:
    """Return the work of one reward model's members: the pairs, at most all, and samples for centring."""
    models = params.reward.members * (rows.preferences > 0)
    return Work(
        trained=2 * models * params.reward.visits(rows.preferences), sampled=models * params.reward.centre_prompts
    )


def _evaluation(params: Params, rows: Counts) -> Work:
    """Return the work of evaluation: final policies and the SFT model on test prompts, snapshots on development ones.

    Reading a response six times covers KL, reward model and judge.
    """
    evaluate = params.evaluate
    responses = evaluate.prompts + evaluate.development_prompts  # of the SFT model
    for name in params.policy.methods:
        responses += evaluate.prompts * algorithm_of(params, name).samples_per_answer
        responses += evaluate.development_prompts * params.policy.snapshots(name)
    return Work(read=6 * responses, sampled=responses)


# By the name of the stage. The time of a stage that is not here is START.
STAGE_WORK: dict[str, Callable[[Params, Counts], Work]] = {
    "base": lambda params, rows: Work(trained=params.base.visits(rows.threads)),
    "sft": lambda params, rows: Work(trained=params.sft.visits(rows.demonstrations)),
    "sample": lambda params, rows: Work(sampled=rows.asked * params.sample.responses * len(params.sample.checkpoints)),
    "reward": _reward,
    "evaluate": _evaluation,
}


def measure(config: "PretrainedConfig", params: Params, device: str, weights_of: int | None = None) -> Speed:
    """Time a few steps of the model that `config` describes, in a few seconds, with the loops' own forward passes.

    The section `model` is taken into account, but 4-bit weights count as bf16.

    weights_of: number of weights of the larger model that it stands for, if any; its times are in proportion.
    """
    import torch

    from rlhf_core.common.batch import Example, collate
    from rlhf_core.models.forward import policy_outputs, response_logprobs
    from rlhf_core.models.sampling import LocalSampler

    torch.set_num_threads(params.run.threads)
    shape = model_shape(config)
    model = _model(_cut(config, shape.weights), params, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(parameter.numel() for parameter in model.parameters())
    prompt, response = params.prepare.max_prompt_tokens, params.prepare.max_response_tokens
    rows = max(1, min(params.sft.micro_batch_size, int(BUDGET[device] / (weights * (prompt + response)))))
    sampled = max(1, min(LocalSampler.rows, int(BUDGET[device] / (weights * prompt))))
    prompts = torch.randint(shape.vocabulary, (max(rows, sampled), prompt)).tolist()
    responses = torch.randint(shape.vocabulary, (rows, response)).tolist()
    batch = collate([Example(*row) for row in zip(prompts, responses, strict=False)], 0).to(torch.device(device))
    optimizer = torch.optim.AdamW(trained, fused=True)

    def train() -> None:
        model.train()
        (-policy_outputs(model, batch).logprobs.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    def read() -> None:
        response_logprobs(model.eval(), batch)

    def sample(count: int) -> Callable[[], object]:
        sampler = LocalSampler(count, stop_tokens=(), pad_token=0)  # without a stop token, all are drawn
        return lambda: sampler.token_ids(model.eval(), prompts[:sampled], range(sampled))

    scale = (weights_of or shape.weights) / weights
    train_time, read_time = _seconds(train, device), _seconds(read, device)
    sample_time = max(_seconds(sample(9), device) - _seconds(sample(1), device), 1e-9)
    return Speed(
        train=scale * train_time / (rows * (prompt + response)),
        read=scale * read_time / (rows * (prompt + response)),
        sample=scale * sample_time / (sampled * 8),
    )


def _model(config: "PretrainedConfig", params: Params, device: str) -> Any:
    """A model with random weights, prepared for training as in the stages."""
    import torch

    from rlhf_core.models.adapters import Base, add_adapter
    from tasks.common.models import model_from_scratch

    model: Any = model_from_scratch(params, config)
    if params.model.lora is not None:
        model.to(torch.float32 if params.model.dtype == "fp32" else torch.bfloat16)
        add_adapter(model, params.model.lora, Base("", ""))
    return model.to(device)


def _cut(config: "PretrainedConfig", weights: int) -> "PretrainedConfig":
    """Return the config with fewer layers, so that about MEASURED weights remain."""
    cut = deepcopy(config)
    text = cut.get_text_config()
    text.num_hidden_layers = max(1, min(text.num_hidden_layers, int(text.num_hidden_layers * MEASURED / weights)))
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    return cut


def _seconds(step: Callable[[], object], device: str) -> float:
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
    """Format a span with two significant digits: `20–40 s`, `3–6 min`, `1.5–3 h`, `1,800–3,600 days`."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if span[1] >= 1.5 * size or size == 1:
            low, high = (f"{float(f'{value / size:.2g}'):,g}" for value in span)
            return f"{low} {unit}" if low == high else f"{low}–{high} {unit}"
    raise AssertionError
