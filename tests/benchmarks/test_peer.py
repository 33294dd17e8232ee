"""The comparison with TRL: equal work on both sides, the arithmetic, and turns."""

import io
import json
import sys

import pytest
import torch

from benchmarks.peer import arithmetic, compare, ours, recorder
from benchmarks.peer.arithmetic import Size
from benchmarks.peer.cells import CELLS, END, PAD, Cell, new_tokenizer, text_of, write_model
from benchmarks.peer.lengths import ForcedLengths
from benchmarks.peer.operations import REST, kind_of, shares
from rlhf_core.loops.common.run import minibatch_indices

TOY = {"hidden": 16, "layers": 1, "vocabulary": 32, "prompt": 4, "shortest": 2, "longest": 4}


def toy(method, units=2, group=1):
    return Cell(method, **TOY, units=units, group=group)


def test_cells_are_named_by_method_size_and_prompt():
    assert len(CELLS) == 20
    assert Cell.named("grpo tiny256") == Cell("grpo", 128, 4, 4096, prompt=256, units=2, group=8)
    assert Cell.named("dpo small32").rows == 16
    for wrong in ("grpo", "grpo tiny", "kto tiny32", "grpo large32"):
        with pytest.raises(ValueError, match="there is no cell"):
            Cell.named(wrong)


def test_rows_are_the_same_in_every_process_and_differ_between_steps():
    cell = toy("dpo")
    assert cell.responses(0) == cell.responses(0) != cell.responses(1)
    assert [len(ids) for ids in cell.responses(0)] == cell.lengths(0)
    assert all(ids[-1] == END and END not in ids[:-1] for ids in cell.responses(0))


def test_texts_have_exactly_the_ids():
    tokenizer, ids = new_tokenizer(32), [5, 31, 2]
    assert tokenizer(text_of(ids)).input_ids == ids
    assert tokenizer(f"{text_of(ids)} {text_of(ids)}").input_ids == ids + ids


def test_forced_lengths_end_each_row_at_its_length_and_begin_anew_with_each_call():
    cell = toy("grpo", units=1, group=6)
    forced = ForcedLengths(cell)
    for step in (0, 1):
        ids, ended_at = torch.zeros(6, cell.prompt, dtype=torch.long), [0] * 6
        for drawn in range(1, cell.longest + 1):
            tokens = forced(ids, torch.zeros(6, cell.vocabulary)).argmax(-1)
            ids = torch.cat([ids, tokens[:, None]], 1)
            ended_at = [old or drawn * int(token == END) for old, token in zip(ended_at, tokens, strict=True)]
            assert PAD not in tokens
        assert ended_at == cell.lengths(step)


def test_forward_pass_by_hand():
    """Width 16, one layer: 16 · 16² = 4,096 weights; head 32 · 16 = 512.

    Two responses of 2 and 3 tokens share a prompt of 4: 9 tokens, 5 of them scored. Keys: prompt 1+2+3+4 = 10;
    responses 5+6 and 5+6+7, together 39. 2·4096·9 + 4·16·39 + 2·512·5 = 73,728 + 2,496 + 5,120.
    """
    size = Size.of(toy("grpo", group=2))
    assert size.forward(4, [2, 3], 2, head=True) == 81_344
    assert size.forward(4, [2, 3], 2, head=False) == 76_224
    assert size.forward(4, [2, 3], 1, head=False) == 76_224 + 2 * 4096 * 4 + 4 * 16 * 10


def test_passes_of_each_method():
    def passes(method, **changes):
        cell = toy(method, **changes)
        whole = Size.of(cell).forward(4, cell.lengths(0), cell.rows // cell.units, head=True)
        scalar = Size.of(cell).forward(4, cell.lengths(0), cell.rows // cell.units, head=False)
        return arithmetic.training(cell, 0), whole, scalar

    for method, of_policy, of_scalar in (("sft", 3, 0), ("dpo", 4, 0), ("reward", 0, 3), ("ppo", 13, 13)):
        total, whole, scalar = passes(method)
        assert total == of_policy * whole + of_scalar * scalar
    assert arithmetic.training(toy("dpo"), 0, trained=2) == 3 / 4 * arithmetic.training(toy("dpo"), 0)
    total, whole, _ = passes("grpo", group=2)
    assert total == 3 * whole
    assert arithmetic.decoding(toy("grpo", group=2), 0) == whole
    assert arithmetic.decoding(toy("dpo"), 0) == 0


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_our_loop_visits_the_rows_in_the_order_of_the_steps(method):
    cell, steps = toy(method, units=3), 4
    units = ours._units(cell, steps)
    for step in range(steps):
        visited = [units[index] for index in minibatch_indices(step, len(units), 3, 0, ours.NAME)]
        assert [list(unit[0].prompt_ids) for unit in visited] == cell.prompts(step)
        assert [list(row.response_ids) for unit in visited for row in unit] == cell.responses(step)


def test_kinds_of_operations():
    known = {
        "aten::addmm": "matrix products",
        "mkldnn::_linear_pointwise": "matrix products",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
        "aten::mul": "element-wise",
        "aten::cat": "copies",
        "aten::_softmax": "softmax, logits, drawing",
        "aten::exp_": "softmax, logits, drawing",
        "aten::expand": "copies",
        "aten::_fused_adamw_": "optimiser and clipping",
        "autograd::engine::evaluate_function: MmBackward0": REST,
    }
    assert {name: kind_of(name) for name in known} == known


def test_time_without_an_operation_is_python():
    found = shares([("aten::mm", 1.0), ("aten::mul", 0.5), ("MmBackward0", 0.25)], 2.0)
    assert found["matrix products"] == 0.5
    assert found["element-wise"] == 0.25
    assert found[REST] == 0.25
    assert sum(found.values()) == 1.0


@pytest.mark.parametrize("method", ["grpo", "ppo", "dpo", "reward", "sft"])
def test_our_side_takes_all_steps_in_turn(tmp_path, method, monkeypatch, capsys, accelerator):
    cell = toy(method, group=2 if method == "grpo" else 1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n" * 10))
    monkeypatch.setattr(recorder, "SIDE", 16)
    recorded = recorder.Recorder(cell, steps=2, warmup=1, profiled=1)
    ours.main(cell, write_model(cell, tmp_path), recorded, False)
    found = recorded.result()
    assert capsys.readouterr().out.count(recorder.READY) == 5  # one before each of 4 steps, and one at the end
    assert len(found["steps"]) == 3
    assert found["seconds"] > 0 and found["operations"]["matrix products"] > 0
    assert (found["decode_seconds"] > 0) == (found["decoding_share"] is not None) == (method in ("grpo", "ppo"))
    assert bool(found["once_per_step"]) == (method == "dpo")


def test_work_done_once_counts_in_each_step():
    recorded = recorder.Recorder(toy("dpo"), steps=1, warmup=1)
    recorded.once("reference", 3.0)
    recorded.once("reference", 1.0)
    recorded.step_seconds, recorded.decode_seconds = [9.0, 1.0], [0.0, 0.0]
    recorded.limit = recorded.peak = recorded.loaded = 1.0
    assert recorded.result()["seconds"] == 1.0 + 4.0 / 2


def test_sides_alternate_and_a_failure_quotes_the_log(tmp_path, monkeypatch):
    log = tmp_path / "order"
    script = tmp_path / "side.py"
    script.write_text(
        "import json, sys\n"
        "spec = json.loads(sys.argv[3])\n"
        f"order = open({str(log)!r}, 'a', buffering=1)\n"
        "print('@ready', flush=True)\n"
        "for step in range(spec['steps']):\n"
        "    sys.stdin.readline()\n"
        "    order.write(f\"{'best' if spec['best'] else 'plain'} {step}\\n\")\n"
        "    print('@ready', flush=True)\n"
        "assert spec['steps'] < 3, 'too many steps'\n"
        "json.dump({'seconds': 1.0, 'growth_mib': 2.0}, open(spec['out'], 'w'))\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PEER_PYTHON", str(python))
    found = compare.measure(toy("sft"), ["trl", "trl_best"], 2, 0, 0, tmp_path / "models")
    assert log.read_text().split("\n")[:-1] == ["plain 0", "best 0", "plain 1", "best 1"]
    assert found == {name: {"seconds": 1.0, "growth_mib": 2.0} for name in ("trl", "trl_best")}
    assert list(compare.measure(toy("ppo"), ["trl", "trl_best"], 1, 0, 0, tmp_path / "models")) == ["trl"]
    with pytest.raises(compare.SideError, match=r"(?s)trl ended with code 1:.*too many steps"):
        compare.measure(toy("sft"), ["trl"], 3, 0, 0, tmp_path / "models")


def test_an_unknown_cell_is_reported_and_the_others_are_stored(tmp_path, monkeypatch, capsys):
    measured = {"ours": {"seconds": 1.0, "growth_mib": 1.0}, "trl": {"seconds": 3.0, "growth_mib": 4.0}}
    monkeypatch.setattr(compare, "measure", lambda *given: measured)
    out = tmp_path / "peer.json"
    assert compare.main(["--cells", "grpo huge1", "sft tiny32", "--out", str(out)]) == 1
    assert "there is no cell 'grpo huge1'" in capsys.readouterr().err
    stored = json.loads(out.read_text())
    assert list(stored) == ["sft tiny32"]
    assert stored["sft tiny32"]["sides"] == measured
    assert {"date", "commit", "machine"} <= set(stored["sft tiny32"]["measured"])
