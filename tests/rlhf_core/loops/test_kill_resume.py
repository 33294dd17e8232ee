"""2N steps equal N steps, a kill, a resume and N steps, bit for bit: weights, history, KL controller.

A training in a separate process is killed with SIGKILL in the fifth of eight steps. The last resume state is from the
fourth step, the end of an epoch. `python test_kill_resume.py NAME FOLDER` runs that process.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import tiny
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.algorithms.grpo import GRPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.loops.common.resume import ResumeStore
from rlhf_core.loops.offline import OfflineConfig, train_offline
from rlhf_core.loops.online import Critic, Models, OnlineConfig, OnlineTraining
from rlhf_core.models.forward import policy_outputs
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import new_scalar_model, save_policy
from rlhf_core.scoring.rewards import WeightedSum
from tiny import END, PAD
from tools.closure import ROOT

STEPS, KILLED_IN, EVERY = 8, 5, 2
NAMES = ["sft", "ppo", "grpo"]


def ignore(metrics, step, total, tokens):
    pass


def kill(metrics, step, total, tokens):
    if step == KILLED_IN:
        os.kill(os.getpid(), signal.SIGKILL)


def train(name, folder, accelerator, report=ignore):
    """Train with the resume state in the folder; return the history and the weights of policy and critic."""
    policy = tiny.rotary()
    run = tiny.quiet_run(folder / "resume", name, report=report)
    if name == "sft":
        history, critic = train_on_rows(accelerator, policy, run), None
    else:
        history, critic = train_on_samples(name, folder, accelerator, policy, run)
    weights = {"policy": policy.state_dict()} | ({} if critic is None else {"critic": critic.state_dict()})
    return history, weights


def train_on_rows(accelerator, policy, run):
    """Four steps per epoch, with a smaller last step; warm-up and cosine schedule."""
    units = [(example,) for example in tiny.examples(14)]
    config = OfflineConfig(
        learning_rate=1e-2,
        schedule="cosine",
        warmup_steps=3,
        weight_decay=0.1,
        epochs=2,
        batch_size=4,
        micro_batch_size=3,
        resume_every=EVERY,
    )
    return train_offline(accelerator, policy, policy_outputs, SFT(), units, units[:3], config, run, PAD)


def train_on_samples(name, folder, accelerator, policy, run):
    """Two epochs of two minibatches per rollout; PPO with a critic and an adaptive KL coefficient."""
    critic = None
    algorithm = GRPO(group_size=2)
    if name == "ppo":
        algorithm = PPO(kl_target=1.0, kl_horizon=100)
        save_policy(tiny.rotary(), tiny.tiny_tokenizer(), folder / "start", max_new_tokens=4)
        torch.manual_seed(0)
        critic = new_scalar_model(folder / "start")
    training = OnlineTraining(
        accelerator,
        Models(policy, tiny.rotary(1), critic and Critic(critic, 1e-2), tiny.tiny_tokenizer()),
        algorithm,
        WeightedSum([("length", 1.0, lambda sampled: sampled.batch.lengths)]),
        tiny.prompts_of(["a", "b c", "d e f a", "b b c", "f", "c a", "e e", "b"]),
        LocalSampler(4, (END,), PAD),
        OnlineConfig(
            learning_rate=1e-2,
            schedule="linear",
            warmup_steps=3,
            steps=STEPS,
            rollout_size=8,
            minibatch_size=4,
            micro_batch_size=3,
            epochs=2,
            resume_every=EVERY,
        ),
        run,
    )
    return training.train(), critic


def killed_training(name, folder):
    """Run a training in a process that kills itself; return its exit code and output."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/support'}"}
    command = [sys.executable, __file__, name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stderr


@pytest.mark.pitfall(25)
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_training_ends_with_the_same_bits(name, tmp_path, accelerator):
    history, weights = train(name, tmp_path / "whole", accelerator)
    assert len(history) == STEPS
    code, errors = killed_training(name, tmp_path / "killed")
    assert code == -signal.SIGKILL, errors
    assert len(ResumeStore(tmp_path / "killed" / "resume").load()["history"]) == 4

    resumed_history, resumed = train(name, tmp_path / "killed", accelerator)
    assert resumed_history == history
    assert resumed.keys() == weights.keys()
    for model, tensors in weights.items():
        for key, value in tensors.items():
            assert torch.equal(value, resumed[model][key]), (model, key)
    if name == "ppo":
        assert len({step["kl_coef"] for step in history}) == STEPS  # the coefficient changed and was resumed
        assert "critic" in weights


@pytest.mark.pitfall(25)
def test_a_state_is_replaced_atomically(tmp_path):
    """A partial state, left by a kill, is never read; `clear` deletes everything."""
    store = ResumeStore(tmp_path / "resume")
    assert store.load() is None
    store.save({"step": 1})
    (tmp_path / "resume" / "state.partial").write_bytes(b"half")
    assert store.load() == {"step": 1}
    store.save({"step": 2})
    assert store.load() == {"step": 2}
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["state.pt"]
    store.clear()
    assert store.load() is None
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], Path(sys.argv[2]), Accelerator(cpu=True), report=kill)
