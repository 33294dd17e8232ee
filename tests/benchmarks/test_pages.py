"""Growth, the demo, the GPU and the page, without measuring anything for long."""

import json

import pytest
import torch

from benchmarks import demo, gpu, growth, page, stored
from benchmarks.demo import Ran
from rlhf_core.models.store import new_policy

STAMP = {"date": "2026-01-02", "commit": "abc1234", "machine": "M", "cores": 2}


def peer(**seconds):
    sides = {
        side: {
            "seconds": value,
            "growth_mib": 100 * value,
            "limit_gflops": 90.0,
            "training_share": 0.4,
            "decoding_share": 0.1,
            "operations": {"matrix products": 0.75, "copies": 0.25} if side == "ours" else None,
        }
        for side, value in seconds.items()
    }
    return {"measured": STAMP, "sides": sides}


def test_page_shows_ratios_beside_floors_and_marks_those_below():
    results = {"grpo tiny32": peer(ours=0.5, trl=1.4, trl_best=1.2), "dpo tiny256": peer(ours=1.0, trl=3.7)}
    text = page.speed(results)
    assert "| GRPO, whole step | **2.80** / 2.40 (3.0) | – | – | – |" in text
    assert "| DPO | – | 3.70 / – (3.7) | – | – |" in text
    assert "| GRPO, whole step | 0.5 / 1.4 / 1.2 |" in text
    assert "2026-01-02, commit abc1234, M, 2 cores." in text


def test_page_shows_memory_and_marks_small256_below_a_quarter():
    text = page.memory({"dpo small256": peer(ours=1.0, trl=3.9), "sft small256": peer(ours=1.0, trl=1.5)})
    assert "| DPO | – | – | – | 100 / 390 (**3.9**) |" in text
    assert "| SFT | – | – | – | 100 / 150 (1.5) |" in text


def test_page_shows_shares_of_the_limit_and_kinds_of_operations():
    text = page.limits({"grpo tiny32": peer(ours=0.5, trl=1.4)})
    assert "| grpo tiny32 | 40 / 40 | 10 / 10 |" in text
    assert "| grpo tiny32 | 75 | 25 |" in text


def test_sections_without_results_say_so():
    for section in (page.speed, page.memory, page.limits, page.growth, page.gpu, page.demo):
        assert "Not run yet. Command: `make bench-" in section({})


def test_page_is_written_from_the_stored_results(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PAGE", tmp_path / "README.md")
    page.write()
    assert (tmp_path / "README.md").read_text().count("<!-- begin ") == 6
    assert (tmp_path / "README.md").read_text().rstrip() in (stored.ROOT / "benchmarks/README.md").read_text()


def test_growth_varies_one_quantity_of_the_base_cell():
    for cell_of, values, _ in growth.AXES.values():
        cells = [cell_of(value) for value in values]
        changed = {name for name in vars(growth.BASE) if len({getattr(cell, name) for cell in cells}) > 1}
        assert changed in ({"longest"}, {"prompt"}, {"units", "group"}, {"vocabulary"}, {"units"})
    assert {growth.of_group(size).rows for size in (2, 4, 8, 16, 32)} == {growth.ROWS}
    assert growth.of_batch(64).rows == 64
    assert (
        max(cell_of(values[-1]).prompt + cell_of(values[-1]).longest for cell_of, values, _ in growth.AXES.values())
        < 1024
    )


def test_growth_stores_points_and_draws_a_picture(tmp_path, monkeypatch):
    result = {"seconds": 1.0, "decode_seconds": 0.5, "growth_mib": 3.0, "steps": [1.0]}
    monkeypatch.setattr(growth, "measure", lambda *given: {"ours": result, "trl": result})
    out = tmp_path / "growth.json"
    growth.main(["--axes", "response", "--points", "2", "--out", str(out), "--images", str(tmp_path)])
    points = json.loads(out.read_text())["response"]["points"]
    assert [point["value"] for point in points] == [32, 64]
    assert points[0]["sides"]["trl"] == {"seconds": 1.0, "decode_seconds": 0.5, "growth_mib": 3.0}
    assert (tmp_path / "growth-response.png").read_bytes()[:4] == b"\x89PNG"


def test_stage_times_by_hand():
    """Two places. c needs a; d needs a and waits for a place until b ends at 14."""
    runs = [Ran("a", 5, 10), Ran("b", 12, 14), Ran("c", 13, 30), Ran("d", 17, 20)]
    upstream = {"b": ["a"], "c": ["a"], "d": ["a"]}
    times = demo.stage_times(runs, upstream, parallel=2)
    assert times["a"] == {"wall": 10, "work": 5, "around": 5}
    assert times["b"] == {"wall": 4, "work": 2, "around": 2}
    assert times["c"] == {"wall": 20, "work": 17, "around": 3}
    assert times["d"] == {"wall": 6, "work": 3, "around": 3}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    from tasks.runtime.tracking import client, experiment_id

    mlflow = client()
    return mlflow, experiment_id(mlflow)


def test_last_complete_run_is_the_newest_one_with_every_stage(store):
    mlflow, experiment = store

    def flow(begin, stages):
        run = mlflow.create_run(experiment, start_time=begin, tags={"kind": "pipeline"})
        mlflow.log_param(run.info.run_id, "run.parallel", "2")
        for name in stages:
            tags = {"mlflow.parentRunId": run.info.run_id}
            child = mlflow.create_run(experiment, start_time=begin + 1000, run_name=name, tags=tags)
            mlflow.set_terminated(child.info.run_id, end_time=begin + 3000)
        mlflow.set_terminated(run.info.run_id, end_time=begin + 9000)

    assert demo.last_complete(["sft"]) is None
    flow(1_000_000, ["sft", "report"])
    flow(2_000_000, ["report"])
    ran, seconds, parallel = demo.last_complete(["sft", "report"])
    assert sorted((run.stage, run.start, run.end) for run in ran) == [("report", 1.0, 3.0), ("sft", 1.0, 3.0)]
    assert (seconds, parallel) == (9.0, 2)


def test_page_shows_the_demo_before_and_after():
    stages = {"sft": {"wall": 33, "around": 6.5}}
    results = {"before": {"measured": STAMP, "flow": 465, "stages": stages}}
    results["after"] = {"measured": STAMP, "flow": 280.4, "stages": {"sft": {"wall": 20.2, "around": 4.0}}}
    text = page.demo(results)
    assert "| sft | 33 (6.5) | 20 (4.0) |" in text
    assert "| whole flow | 465 | 280 |" in text


@pytest.mark.parametrize(("name", "billions"), [("0.5B", 0.494), ("1.5B", 1.544)])
def test_gpu_models_have_the_size_of_qwen(name, billions):
    shape = gpu.SHAPES[name]
    assert gpu.parameter_count_of(shape) / 1e9 == pytest.approx(billions, abs=0.001)
    # What the arithmetic counts, beside biases and norms.
    assert shape.size.layers + shape.size.head == pytest.approx(gpu.parameter_count_of(shape), rel=1e-3)


def test_gpu_bytes_by_hand():
    """One layer, K/V width 16; 7 response tokens are decoded for each of 2 · 2 rows.

    Keys and values: own 4 · 7 · 6 / 2 = 84 token reads; prompts 2 · 6 · 7 = 84. 168 · 2 · 16 numbers and 7 times all
    weights, two bytes each.
    """
    shape = gpu.Shape(32, 64, 1, 4, 2, 512)
    cell = gpu.replace(gpu.cell_of("grpo", shape, tiny=True), longest=7, shortest=7)
    weights = 2 * 32 * (32 + 16) + 3 * 32 * 64 + 512 * 32
    assert gpu.decoded_bytes(cell, shape) == 2 * (7 * weights + 168 * 2 * 16)


def test_gpu_models_compute_in_bf16_with_float32_masters(accelerator):
    setup = gpu.setup_of(gpu.SHAPES["tiny"], "full", accelerator, None)
    policy, reference = setup.policy(), setup.reference()
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    assert {weight.dtype for weight in reference.parameters()} == {torch.bfloat16}
    for ours, theirs in zip(policy.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours.to(torch.bfloat16), theirs)
    assert policy.compute_precision == setup.scalar().compute_precision == "bf16"
    assert new_policy(gpu.SHAPES["tiny"].config).config.model_type == "qwen2"


def test_gpu_script_runs_on_the_cpu_with_a_tiny_model(tmp_path, accelerator):
    out = tmp_path / "gpu.json"
    gpu.main(["--tiny", "--steps", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    rows = [row for row in result["tiny"]["rows"] if row["weights"] == "full"]
    assert [row["method"] for row in rows] == list(gpu.METHODS)
    for row in rows:
        assert row["trained tokens/s"] > 0
        assert (row["decoded tokens/s"] is not None) == (row["method"] in ("grpo", "ppo"))
    assert "tiny: 0.00 billion weights, bf16, on the CPU" in page.gpu(result)
