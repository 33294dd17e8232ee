"""Progress: lines at intervals without a terminal, a bar on a terminal, and the code that reports it."""

import os
import pty
import subprocess
import sys

import pytest
import torch
import transformers

from rlhf_core.algorithms.dpo import DPO
from rlhf_core.loops.offline import OfflineConfig, with_ref_logprobs
from rlhf_core.models.sampling import LocalSampler
from tasks.common.sampling import sample_responses
from tasks.runtime import progress as module
from tasks.runtime.progress import INTERVAL, Lines, counted, progress, show
from tasks.runtime.stage import quiet_libraries
from tasks.runtime.training_progress import TrainingProgress, tracked_name
from tiny import END, PAD, examples, paired, prompts_of, rotary, tiny_tokenizer
from tools.closure import ROOT


class Clock:
    """A clock that advances only when it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


def test_slow_work_prints_a_line_per_interval_and_at_the_end(capsys):
    clock = Clock()
    lines = Lines("reference", 100, clock=clock)
    for _ in range(10):
        clock.now += INTERVAL / 2
        lines.advance(10)
    # every second step prints a line; 10 rows take 5 s, so the remaining seconds are half the remaining rows
    assert capsys.readouterr().err.splitlines() == [
        "reference    20/100  40 s left",
        "reference    40/100  30 s left",
        "reference    60/100  20 s left",
        "reference    80/100  10 s left",
        "reference    100/100  0 s left",
    ]


def test_quick_work_prints_nothing_unless_it_ends_with_a_note(capsys):
    clock = Clock()
    quick = Lines("sampling", 2, clock=clock)
    quick.advance()
    quick.advance()
    training = Lines("sft", 2, clock=clock)
    training.advance(1, "loss 2")
    training.advance(1, "loss 1")
    assert capsys.readouterr().err == "sft          2/2  0 s left  loss 1\n"


def test_resumed_work_estimates_from_its_own_speed(capsys):
    """50 of 60 were done before. The next one takes 10 s, so the other nine take 90 s."""
    clock = Clock()
    lines = Lines("ppo", 60, done=50, clock=clock)
    clock.now += INTERVAL
    lines.advance()
    assert capsys.readouterr().err == "ppo          51/60  90 s left\n"


class Tracker:
    def __init__(self) -> None:
        self.logged = []

    def log_metrics(self, metrics, step):
        self.logged.append((step, dict(metrics)))


def test_training_reports_every_step_to_mlflow_and_its_progress_in_lines(clock, capsys):
    tracker = Tracker()
    report = TrainingProgress(tracker, "judge/", "reward/judge")
    for step in (1, 2, 3):
        clock.now += INTERVAL
        report({"loss": 1 / step, "development_loss": 2.0}, step, 3, 500)
    assert [step for step, _ in tracker.logged] == [1, 2, 3]
    assert tracker.logged[1][1] == {
        "judge/train/loss": 0.5,
        "judge/development/loss": 2.0,
        "judge/train/tokens_per_second": 1000 / 20,
    }
    assert capsys.readouterr().err.splitlines() == [
        "reward/judge 1/3  20 s left  50 tokens/s  loss 1",
        "reward/judge 2/3  10 s left  50 tokens/s  loss 0.5",
        "reward/judge 3/3  0 s left  50 tokens/s  loss 0.333",
    ]


def test_metrics_of_one_kind_share_a_prefix():
    assert [tracked_name(key) for key in ("kl", "development_kl")] == ["train/kl", "development/kl"]


def test_progress_counts_items_until_the_last(clock, capsys):
    seen = []
    for item in counted("judging", ["a", "b"]):
        clock.now += INTERVAL
        seen.append(item)
    assert seen == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["judging      1/2  10 s left", "judging      2/2  0 s left"]


def test_sampling_reports_each_batch(monkeypatch, clock, capsys):
    """5 prompts in batches of 2: three reports with a line each, since each takes an interval."""
    policy, tokenizer = rotary(), tiny_tokenizer()
    sampler = LocalSampler(2, (END,), PAD, rows=2)
    draw = LocalSampler._draw

    def slow(self, *arguments):
        clock.now += INTERVAL
        return draw(self, *arguments)

    monkeypatch.setattr(LocalSampler, "_draw", slow)
    assert len(sample_responses(policy, tokenizer, prompts_of(["a", "b", "c", "d", "e"]), sampler, (0, "x"))) == 5
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == ["2/5", "4/5", "5/5"]
    assert {line.split()[1] for line in lines} == {"x"}


def test_reference_pass_reports_each_part(accelerator):
    """5 pairs in parts of 2; reporting does not change the numbers."""
    units, reference = paired(examples(10)), rotary()
    config = OfflineConfig(micro_batch_size=2)
    counts = []
    reported = with_ref_logprobs(accelerator, reference, units, config, PAD, counts.append)
    assert counts == [2, 2, 1]
    assert reported == with_ref_logprobs(accelerator, reference, units, config, PAD)


def test_loading_of_weights_is_shown(tmp_path, clock, capsys, monkeypatch):
    """transformers counts tensors in its own loop; each takes an interval here."""
    rotary().save_pretrained(tmp_path)
    quiet_libraries()
    shown = []
    real = Lines.advance

    def slow(self, count=1, note=""):
        clock.now += INTERVAL
        shown.append((self.name, self.total))
        real(self, count, note)

    monkeypatch.setattr(Lines, "advance", slow)
    capsys.readouterr()
    try:
        transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path))
    finally:
        transformers.utils.logging.set_tqdm_hook(None)
    assert {name for name, _ in shown} == {"loading weights"}
    assert len(shown) == shown[0][1] > 5
    assert capsys.readouterr().err.splitlines()[0].startswith("loading weights 1/")


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tasks.runtime.progress import counted, show
for item in counted("judging", range(3)):
    list(counted("sampling", range(2)))
training = show("sft", 2)
training.advance(1, "loss 2")
training.advance(1, "loss 1")
training.close()
"""


def test_terminal_shows_bars_and_keeps_the_bar_of_a_training():
    """On a pseudo-terminal: bars may be nested, and the cursor is visible at the end."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", SCRIPT.format(root=str(ROOT))]
    process = subprocess.Popen(command, stderr=slave, stdout=slave, stdin=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the terminal is closed
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    os.close(master)
    text = shown.decode()
    assert "judging" in text and "sampling" in text and "━" in text
    assert "Traceback" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "2/2" in text[text.rindex("sft") :] and "loss 1" in text


def test_without_a_terminal_lines_are_printed(capsys):
    assert isinstance(show("sft", 3), Lines)
    with progress("x", 1) as report:
        report(1)
    assert "\x1b" not in capsys.readouterr().err


def test_dpo_stage_shows_its_reference_pass(monkeypatch):
    """The stage names the pass and counts training and held-out pairs together."""
    from contextlib import contextmanager
    from types import SimpleNamespace

    from tasks.stages import offline as stage_module

    shown = []

    @contextmanager
    def recorded(name, total):
        done = []
        yield done.append
        shown.append((name, total, sum(done)))

    model = rotary()
    monkeypatch.setattr(stage_module, "progress", recorded)
    models = SimpleNamespace(reference=lambda: model, policy=lambda stream: model)
    monkeypatch.setattr(stage_module, "StageModels", lambda params: models)
    monkeypatch.setattr(stage_module, "load_tokenizer", lambda path: tiny_tokenizer())
    monkeypatch.setattr(stage_module, "accelerator_of", lambda params: Device())
    trained = []
    monkeypatch.setattr(stage_module, "train_and_save_policy", lambda *arguments: trained.append(arguments))
    pairs = paired(examples(10))
    config = SimpleNamespace(micro_batch_size=2, snapshots=0)
    stage = SimpleNamespace(params=None, name="offline@dpo", stream="policy@dpo")
    stage_module._train(stage, "dpo", DPO(beta=0.1), config, pairs[:3], pairs[3:])
    assert shown == [("offline@dpo reference", 5, 5)]
    assert [len(units) for units in trained[0][4:6]] == [3, 2]


class Device:
    device = torch.device("cpu")

    def prepare_model(self, model, evaluation_mode):
        return model
