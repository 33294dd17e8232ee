"""Take one step of every kind of training on CUDA and compare it with the CPU. Needs only rlhf_core's dependencies.

    python benchmarks/gpu_smoke.py [--out benchmarks/results/gpu_smoke.json]

Checks that float32 on the GPU agrees with the CPU within 1e-4, and that bf16 is finite and agrees within its rounding.
Then samples from a model of about 0.5 B parameters, trains it for a few steps, and prints its peak memory.
Without a GPU the script prints a message and exits 0.
"""

import argparse
import copy
import datetime
import json
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.reward.bradley_terry import BradleyTerry
from rlhf_core.common.batch import Example, Rollout, collate
from rlhf_core.loops.common.update import GradientStep, MicroSize, OptimizerConfig
from rlhf_core.models.forward import policy_outputs, response_logprobs, score_outputs, values
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import ScalarModel, parameter_count

SMALL = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
# The shape of Qwen2.5-0.5B: 24 layers of width 896 and a vocabulary of 151,936.
LARGE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
}
PAD, END = 0, 1


def new_policy(**shape):
    """Return a causal language model on the CPU, with random weights that depend only on its shape."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": 512, "max_position_embeddings": 1024, "tie_word_embeddings": True, **shape},
        pad_token_id=PAD,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config)


def new_scalar(policy):
    """Return a reward model with the policy's architecture and random weights."""
    torch.manual_seed(1)
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    return ScalarModel(AutoModelForSequenceClassification.from_config(config))


def examples(rows, vocabulary, prompt=24, response=32):
    """Return random rows of different lengths."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for row in range(rows):
        p, r = prompt - row % 5, response - 3 * (row % 4)
        ids = torch.randint(2, vocabulary, (p + r,), generator=generator).tolist()
        made.append(Example(ids[:p], [*ids[p:-1], END]))
    return made


def as_rollout(batch, policy, critic):
    """Return the batch as a rollout sampled from the policy, with scores 0, 1, 2, ..."""
    with torch.no_grad():
        logprobs = response_logprobs(policy, batch)
        old_values = values(critic, batch)
    return Rollout.of(
        batch,
        ref_logprobs=logprobs - 0.1 * batch.response_mask,
        old_logprobs=logprobs,
        old_values=old_values,
        scores=torch.arange(float(batch.rows), device=logprobs.device),
        ended=torch.ones(batch.rows, dtype=torch.bool, device=logprobs.device),
        row_weights=torch.ones(batch.rows, device=logprobs.device),
    )


def steps(device, precision):
    """Take one optimiser step of every kind; return losses and gradient norms by name."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    results = {}
    config = OptimizerConfig(learning_rate=1e-3)

    def record(name, algorithm, forward, models, batch):
        trained = {key: (model, 1e-3) for key, model in models.items()}
        step = GradientStep(accelerator, algorithm, forward, trained, config, MicroSize(batch.rows))
        metrics = step(batch, 0, 1)
        results[name] = {"loss": metrics["loss"], "grad_norm": metrics["grad_norm"]}

    batch = collate(examples(8, 512), PAD).to(accelerator.device)
    chosen = torch.arange(batch.rows, device=batch.units.device) % 2 == 0
    pairs = replace(batch, units=batch.units // 2, preferences=chosen.float())
    for name, algorithm in (("sft", SFT()), ("dpo", DPO())):
        policy = accelerator.prepare(new_policy(**SMALL))
        reference = response_logprobs(policy, batch) - 0.1 * batch.response_mask
        prepared = replace(batch if name == "sft" else pairs, ref_logprobs=reference)
        record(name, algorithm, lambda b, p=policy: policy_outputs(p, b), {"policy": policy}, prepared)
    reward = accelerator.prepare(new_scalar(new_policy(**SMALL)))
    record("reward", BradleyTerry(), lambda b: score_outputs(reward, b), {"reward": reward}, pairs)
    for name, algorithm in (("ppo", PPO()), ("grpo", GRPO(group_size=4))):
        policy = accelerator.prepare(new_policy(**SMALL))
        critic = accelerator.prepare(new_scalar(new_policy(**SMALL)))
        rollout = algorithm.targets(as_rollout(batch, policy, critic), algorithm.initial_state())

        def forward(b, policy=policy, critic=critic):
            outputs = policy_outputs(policy, b, entropy="gradient")
            return replace(outputs, values=values(critic, b))

        trained = {"policy": policy, "critic": critic} if name == "ppo" else {"policy": policy}
        record(name, algorithm, forward, trained, rollout)
    return results


def largest_difference(first, second):
    """Return the largest difference: relative for values above 1, absolute otherwise."""
    return max(
        abs(first[name][key] - second[name][key]) / max(1.0, abs(second[name][key]))
        for name in first
        for key in first[name]
    )


def large_model():
    """Sample from and train a model of about 0.5 B parameters in bf16; return throughput, peak memory and losses."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(mixed_precision="bf16")
    torch.cuda.reset_peak_memory_stats()
    policy = accelerator.prepare(new_policy(**LARGE))
    result = {"parameters": parameter_count(policy)}
    prompts = [row.prompt_ids for row in examples(32, LARGE["vocab_size"], prompt=64)]
    began = time.perf_counter()
    responses = LocalSampler(64, (END,), PAD).token_ids(policy, prompts, range(len(prompts)))
    torch.cuda.synchronize()
    result["sampled_tokens_per_second"] = sum(map(len, responses)) / (time.perf_counter() - began)
    result["sampling_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    batch = collate([Example(p, r) for p, r in zip(prompts, responses, strict=True)], PAD).to(accelerator.device)
    trained = {"policy": (policy, 1e-5)}
    step = GradientStep(
        accelerator, SFT(), lambda b: policy_outputs(policy, b), trained, OptimizerConfig(), MicroSize(8)
    )
    losses = []
    for index in range(5):
        if index == 1:  # the first step allocates memory
            torch.cuda.synchronize()
            began = time.perf_counter()
        losses.append(step(batch, index, 5)["loss"])
    torch.cuda.synchronize()
    result["trained_tokens_per_second"] = 4 * int(batch.attention_mask.sum()) / (time.perf_counter() - began)
    result["training_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    result["losses"] = losses
    return result


def main():
    """Run all checks; print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "gpu_smoke.json")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        print("No CUDA device found; nothing was run.")
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    cpu, fp32, bf16 = steps("cpu", "no"), steps("cuda", "no"), steps("cuda", "bf16")
    result = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "fp32_against_cpu": largest_difference(fp32, cpu),
        "bf16_against_cpu": largest_difference(bf16, cpu),
        "large": large_model(),
    }
    print(json.dumps(result, indent=1))
    assert result["fp32_against_cpu"] < 1e-4, "float32 on CUDA differs from the CPU"
    assert result["bf16_against_cpu"] < 5e-2, "bf16 on CUDA differs from the CPU by more than its rounding"
    assert result["large"]["losses"][-1] < result["large"]["losses"][0], "the loss of the large model did not fall"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
