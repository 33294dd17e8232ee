"""`rlhf doctor`: checks for anything that could stop a run before it starts. Each finding says how to fix it."""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from flows.commands.durations import STAGE_WORK, Span, measure, seconds, span_text, together, work
from flows.commands.installation import Finding, look, packages, python
from flows.commands.screen import plain_table
from flows.commands.sizes import SIZES, config_of, described, narrow
from flows.run.changes import Changes, require_data, require_no_output, require_suited_model
from flows.run.graph import Stage, graph_with
from flows.servers.services import find
from rlhf_core.algorithms.base.algorithm import Work
from rlhf_core.algorithms.base.table import policy_algorithms
from rlhf_core.common.errors import UserError
from tasks.common.source import model_source, require_pinned
from tasks.data.readers import kind_of, read_rows
from tasks.files import declared
from tasks.files.formats import AUTO
from tasks.params.derived import stage_of
from tasks.params.schema import Params
from tasks.problems.problem import Counts
from tasks.problems.table import generated_problem, problem_of
from tasks.runtime.git import head
from tasks.runtime.memory import GB, ModelShape, Need, estimate, free_memory, model_shape, on_gpu

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from tasks.common.preflight import Check


WITHOUT = f"For an estimate without a model, choose the nearest size: --size, one of {', '.join(SIZES)}"

# Bytes per weight on disk: a checkpoint; and a resume state with AdamW's moments, with the one that replaces it.
SAVED, RESUMED = 4, 2 * (4 + 8)


@dataclass(frozen=True)
class Assumed:
    """A model's size (a key of SIZES) and a number of rows to estimate for."""

    size: str
    rows: int


@dataclass(frozen=True)
class Data:
    """The data of a run: a description, and the number of rows that stages will get; None if unknown."""

    detail: str
    counts: Counts | None = None


def examine(root: Path, profile: str, assignments: list[str], out: Console, assumed: Assumed | None = None) -> bool:
    """Print the findings for a run of this profile with these values. Return whether the run can start.

    With `assumed`, the estimates are those of a model and data that need not be here.
    """
    findings = list(_environment(root))
    try:
        resolved = Changes.from_command_line(profile, assignments).resolve(root)
        params = resolved.params
        require_no_output(params, root)
        findings.append(Finding("parameters", True, f"valid, profile {profile}"))
    except UserError as error:
        return _show([*findings, Finding("parameters", False, str(error))], [], 0, out)
    os.chdir(root)  # paths in params.yaml are relative to it
    data: Data | None = None
    try:
        data = _data(params)
        findings.append(Finding("data", True, data.detail))
    except UserError as error:
        findings.append(Finding("data", None if assumed else False, str(error)))
    if assumed and (data is None or data.counts is None):
        data = _assumed_data(assumed, params)
        findings.append(Finding("data", None, data.detail))
    idle = _idle(params, data.counts) if data is not None and data.counts is not None else set()
    findings.append(look("stages", lambda: _stages(graph_with(root, resolved.raw), idle)))
    findings += _devices(params)
    needs: list[Need] = []
    spans: dict[str, Span] = {}
    try:
        config, is_from_scratch = (config_of(assumed.size), False) if assumed else _model(params)
        shape = model_shape(config)
        needs = [need for need in estimate(shape, params, is_from_scratch) if need.stage not in idle]
        size = f"{shape.weights / 1e6:,.1f} M weights, {shape.layers} layers of width {shape.width}"
        if assumed:
            said = f"no model is read; the estimates are for the shape of {described(assumed.size)}: {size}"
            findings.append(Finding("model", None, said))
        else:
            findings.append(Finding("model", True, f"{size}{', trained from scratch' if is_from_scratch else ''}"))
        can_start = all(finding.is_ok is not False for finding in findings)
        findings += [_memory(needs, params), _disk(root, shape, params)]
        if assumed is None:  # an assumed run need not fit this machine
            can_start = all(finding.is_ok is not False for finding in findings)
        if data is not None and data.counts is not None and can_start:
            timed = narrow(config) if assumed else config
            spans = _spans(params, data.counts, timed, is_from_scratch, shape.weights)
            findings.append(_time(spans, params))
    except UserError as error:
        findings.append(Finding("model", False, str(error)))
    return _show(findings, needs, free_memory(params), out, spans)


def _idle(params: Params, counts: Counts) -> set[str]:
    """Return the stages that only record why they do nothing, such as `reward` if the data has no feedback."""
    return {stage for stage, work_of in STAGE_WORK.items() if work_of(params, counts) == Work()}


def _stages(graph: Sequence[Stage], idle: Collection[str]) -> str:
    return ", ".join(f"{stage.name} (nothing to do)" if stage.name in idle else stage.name for stage in graph)


def _assumed_data(assumed: Assumed, params: Params) -> Data:
    """Data of the configured format with as many rows as assumed; preferences if the format is detected."""
    kind = "preference" if params.prepare.format == AUTO else params.prepare.format
    counts = problem_of(kind).count_rows(params, assumed.rows)
    return Data(f"the times are for {assumed.rows:,} rows of kind {kind}; other numbers: --rows", counts)


def _spans(
    params: Params, counts: Counts, config: "PretrainedConfig", is_from_scratch: bool, weights: int
) -> dict[str, Span]:
    """Return the shortest and longest duration of each stage in seconds, from a short measurement on this device.

    `config` is measured in place of a model with so many weights.
    """
    speed = measure(config, params, "cuda" if on_gpu(params) else "cpu", weights)
    stages = work(params, counts, is_from_scratch)
    return {stage: seconds(item, speed, params) for stage, item in stages.items()}


def _time(spans: dict[str, Span], params: Params) -> Finding:
    whole = span_text(together(spans, params.run.parallel))
    return Finding("time", True, f"about {whole} for all stages, measured on this device; other load makes it slower")


def examine_stage(root: Path, stage: str, profile: str, assignments: list[str], out: Console) -> bool:
    """Run the checks of one training stage on the data and models in this checkout. Return whether all passed.

    Raises:
        UserError: the stage does not train, or one of its inputs is missing.
    """
    params = Changes.from_command_line(profile, assignments).resolve(root).params
    os.chdir(root)
    import torch

    from tasks.runtime.stage import quiet_libraries

    quiet_libraries()
    torch.manual_seed(0)
    findings = [look(name, partial(_passed, check)) for name, check in _checks(stage, params)]
    return _show(findings or [Finding(stage, True, "this stage trains nothing here")], [], 0, out)


def _passed(check: Callable[[], None]) -> str:
    check()
    return "passed"


def _checks(stage: str, params: Params) -> "Iterator[Check]":
    single = [item.name for item in declared.STAGES if item.checks and not item.is_matrix]
    single += [f"{declared.REWARDS}@{name}" for name in params.reward_models.names]
    if stage not in [*single, *map(stage_of, policy_algorithms())]:
        listed = ", ".join([*single, *map(stage_of, params.policy.methods)])
        raise UserError(f"--stage {stage} is not a training stage. Choose from: {listed}.")
    _, _, member = stage.partition("@")
    checks: Callable[..., Iterator[Check]] = resolve_name(declared.of(stage).checks)
    return checks(params, member) if member else checks(params)


def _environment(root: Path) -> Iterator[Finding]:
    """Check versions, git and services."""
    yield python()
    yield packages(root)
    yield look("git", lambda: f"commit {head(root)[:10]}")
    services = find(root)
    running = (
        f"Prefect {services.prefect}, MLflow {services.mlflow}" if services else "not running; rlhf up starts them"
    )
    yield Finding("services", True, running)


def _data(params: Params) -> Data:
    """Read the data as stage prepare will, and describe it."""
    section = params.prepare
    require_data(section, Path())
    if section.hub:
        return Data(f"{section.hub}, downloaded when stage prepare first runs")
    if generated := generated_problem(section.format):
        return Data(generated.look(section, Path()), generated.count_rows(params, 0))
    rows = read_rows(Path(section.path), "", section.format, section.answer_pattern, section.preference_base)
    problem = problem_of(kind_of(rows))
    counts = problem.count_rows(params, len(rows))
    return Data(f"{section.path}, {len(rows):,} rows of kind {problem.kind}", counts)


def _devices(params: Params) -> Iterator[Finding]:
    """Check that the chosen device exists, and that there are not more threads than cores."""
    import torch

    cores = os.cpu_count() or 1
    if params.run.device == "cuda" and not torch.cuda.is_available():
        yield Finding("device", False, "run.device is cuda, but torch finds no GPU. Set run.device to auto or cpu.")
    elif on_gpu(params):
        yield Finding("device", True, f"CUDA: {torch.cuda.get_device_name()}")
    else:
        yield Finding("device", True, f"CPU, {cores} cores")
    busy = params.run.threads * params.run.parallel
    if busy > cores:
        yield Finding("threads", None, f"run.threads × run.parallel is {busy} on {cores} cores. Lower one of them.")


def _model(params: Params) -> "tuple[PretrainedConfig, bool]":
    """Return the config of the chosen model, and whether it is trained from scratch."""
    from transformers import AutoConfig

    from rlhf_core.models.store import load_config

    if params.model.hub:  # fetch only the config: a check must not download gigabytes
        name, revision = require_pinned(params.model.hub)
        try:
            return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False), False
        except (OSError, ValueError) as error:  # not found, or an architecture with custom code
            first = str(error).strip().splitlines()[0]
            raise UserError(
                f"model.hub {params.model.hub}: {first} Check the id and the network.\n{WITHOUT}"
            ) from error
    try:
        require_suited_model(params)
    except UserError as error:
        raise UserError(f"{error}\n{WITHOUT}") from error
    source = model_source(params.model)
    config = load_config(source.config or source.folder or Path())
    if source.config is not None:
        config.vocab_size = params.model.vocabulary
    return config, source.config is not None


def _memory(needs: list[Need], params: Params) -> Finding:
    """Check that the largest stage fits, and that policies that run at the same time fit together."""
    policies = sorted((need for need in needs if "@" in need.stage), key=lambda need: -need.total)
    together = policies[: params.run.parallel]
    largest = max(needs, key=lambda need: need.total)
    need, who = max(
        (largest.total, largest.stage),
        (sum(policy.total for policy in together), " and ".join(policy.stage for policy in together)),
    )
    free = free_memory(params)
    if need <= free:
        return Finding("memory", True, f"about {need / GB:.1f} GB for {who}; {free / GB:.1f} GB free")
    fix = "Lower run.parallel, a micro_batch_size or prepare.max_response_tokens, or choose a smaller model."
    return Finding("memory", False, f"about {need / GB:.1f} GB for {who}, {free / GB:.1f} GB free. {fix}")


def _disk(root: Path, shape: ModelShape, params: Params) -> Finding:
    """Check that checkpoints, snapshots and resume states fit."""
    policies = sum(1 + params.policy.snapshots(name) for name in params.policy.methods)
    checkpoints = len(declared.checkpoints()) + policies
    resumed = RESUMED * params.run.parallel if params.model.lora is None else 0  # an adapter's state is small
    need = (SAVED * checkpoints + resumed) * shape.weights + GB
    free = shutil.disk_usage(root).free
    text = f"about {need / GB:.1f} GB for {checkpoints} checkpoints and other files, {free / GB:.1f} GB free"
    fix = "Free some space, or lower policy.*.snapshots."
    return Finding("disk", need <= free, text if need <= free else f"{text}. {fix}")


def _show(
    findings: list[Finding], needs: list[Need], free: float, out: Console, spans: Mapping[str, Span] | None = None
) -> bool:
    """Print findings and the estimates of memory and time per stage. Return whether the run can start."""
    marks = {True: ("✓", "green"), False: ("✗", "red"), None: ("!", "yellow")}
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:  # lines, because a table would wrap the commands in them
        line = Text.assemble(" ", marks[finding.is_ok], f" {finding.subject:{width}}  {finding.detail}")
        out.print(line, soft_wrap=True)
    if needs:
        headings = ("stage", "models (GB)", "one batch (GB)", "in all (GB)", "time")
        stages = plain_table(*headings, title="Estimated")
        for need in needs:
            colour = "red" if need.total > free else "none"
            numbers = [f"{value / GB:.2f}" for value in (need.models, need.activations, need.total)]
            span = (spans or {}).get(need.stage)
            stages.add_row(need.stage, *numbers, span_text(span) if span else "–", style=colour)
        out.print(stages)
    return all(finding.is_ok is not False for finding in findings)
