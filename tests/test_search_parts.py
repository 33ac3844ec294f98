"""The parts of a search: journal, budget, statistics, descent, cost and allocation."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.errors import ModelError, UsageError
from ingot.optimizers.budget import Budget, StopSearch
from ingot.optimizers.journal import JOURNAL, Journal, holder_of, read_journal
from ingot.optimizers.latency import compare_calls
from ingot.optimizers.pruning.descent import Descent
from ingot.optimizers.statistics import (
    Metric,
    is_hopeless,
    paired_drop,
    scale_of,
    smallest_drop,
)

# --- journal ---------------------------------------------------------------------------------


def test_what_was_appended_is_found_again(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append("run", delta=0.1)
        journal.append("trial", "1", drop=0.5)
        assert holder_of(tmp_path) is not None
    with Journal(tmp_path) as journal:
        assert journal.find("trial", "1") == {"kind": "trial", "name": "1", "drop": 0.5}
        assert journal.find("trial", "2") is None
    assert holder_of(tmp_path) is None


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 200), data=st.binary(max_size=40))
def test_a_torn_last_line_is_dropped(
    cut: int, data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with Journal(folder) as journal:
        journal.append("run", delta=1)
        journal.append("trial", "1", text="x" * 150)
    path = folder / JOURNAL
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: max(first, len(whole) - cut)] + data.replace(b"\n", b""))
    assert [record["kind"] for record in read_journal(folder)][:1] == ["run"]
    with Journal(folder) as journal:
        journal.append("trial", "2")
    names = [record["name"] for record in read_journal(folder)]
    assert names == ["", "2"]


def test_a_changed_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"kind": "run", "name": ""}\nnonsense\n')
    with pytest.raises(ModelError, match=r"journal\.jsonl:2: found no record"):
        Journal(tmp_path)


def test_a_second_process_is_refused_and_a_dead_one_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ingot.optimizers.journal import Journal;"
        "journal = Journal(Path(sys.argv[1])); print('open', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    with pytest.raises(UsageError, match=f"another process \\(number {process.pid}\\)"):
        Journal(tmp_path)
    assert holder_of(tmp_path) == process.pid
    process.kill()
    process.communicate()
    Journal(tmp_path).close()


def test_no_number_that_json_lacks_is_written(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        with pytest.raises(ValueError, match="JSON"):
            journal.append("trial", "1", drop=math.nan)
        assert (tmp_path / JOURNAL).read_bytes() == b""


# --- budget ----------------------------------------------------------------------------------


def test_a_budget_ends_for_each_reason() -> None:
    budget = Budget(5, 100.0, reserved=2)
    budget.spend(2)
    budget.check(1)
    with pytest.raises(StopSearch) as stopped:
        budget.check(2)
    assert stopped.value.by == "max_evaluations"
    budget.before = 101.0
    with pytest.raises(StopSearch) as stopped:
        budget.check(0)
    assert stopped.value.by == "max_time"
    budget.stop_requested = True
    with pytest.raises(StopSearch) as stopped:
        budget.check(0)
    assert stopped.value.by == "signal"


# --- statistics ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(60, 400),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
    st.sampled_from([1.0, 100.0]),
    st.booleans(),
)
def test_the_interval_holds_the_drop(
    count: int, worse: float, better: float, scale: float, higher: bool
) -> None:
    generator = np.random.default_rng(count)
    reference = generator.random(count) < 0.5
    flips = np.where(reference, generator.random(count) < worse, generator.random(count) < better)
    candidate = (reference ^ flips).astype(float)
    metric = Metric("accuracy", higher, scale)
    found = paired_drop(metric, reference.astype(float), candidate)
    assert found is not None
    assert found.interval is not None
    low, high = found.interval
    expected = metric.drop(reference.mean() * scale, candidate.mean() * scale)
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert low <= found.value + 2 * scale / count
    assert high >= found.value - 2 * scale / count
    assert low < high


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    metric = Metric("accuracy", True, 1.0)
    hits = 0
    for _ in range(400):
        reference = generator.random(300) < 0.9
        lost = reference & (generator.random(300) < 0.04)
        won = ~reference & (generator.random(300) < 0.2)
        candidate = (reference & ~lost) | won
        truth = 0.9 * 0.04 - 0.1 * 0.2
        found = paired_drop(metric, reference.astype(float), candidate.astype(float))
        assert found is not None
        assert found.interval is not None
        hits += found.interval[0] <= truth <= found.interval[1]
    assert hits >= 0.92 * 400


def test_hopeless_candidates_are_seen_and_good_ones_seldom_sent_away() -> None:
    generator = np.random.default_rng(1)
    metric = Metric("accuracy", True, 100.0)
    reference = (generator.random(2000) < 0.9).astype(float)
    bad = reference * (generator.random(2000) < 0.8)
    assert is_hopeless(metric, reference, bad[:500], 1.0)
    wrong = 0
    for _ in range(200):
        good = reference * (generator.random(2000) < 0.99)
        wrong += any(is_hopeless(metric, reference, good[:n], 1.0) for n in (250, 500, 1000))
    assert wrong <= 2


def test_scale_and_smallest_drop() -> None:
    results = np.array([1.0, 0.0, 1.0, 1.0])
    assert scale_of(0.75, results) == 1.0
    assert scale_of(75.0, results) == 100.0
    assert scale_of(60.0, results) is None
    assert scale_of(0.75, None) is None
    assert smallest_drop(Metric("a", True, 100.0), 360) == pytest.approx(100 / 360)
    assert Metric("loss", False).drop(1.0, 1.5) == 0.5
    assert Metric("a").drop(1.0, math.nan) == math.inf


# --- descent ---------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 6), min_size=60, max_size=60), st.integers(1, 2), st.booleans())
def test_the_descent_ends_and_goes_on_from_what_was_accepted(
    drops: list[float], level: int, deep: bool
) -> None:
    descent = Descent(1.0, level, deep)
    accepted: list[str] = []
    for number, drop in enumerate(drops, 1):
        plan = descent.plan()
        if plan is None:
            break
        assert plan.ratio >= 1.0
        if not plan.is_retraining:
            assert plan.parent in ("", *accepted)
        name = str(number)
        status = "accepted" if drop <= 1 else "missed" if drop < 4 else "rejected early"
        if status == "accepted":
            accepted.append(name)
        descent.learn(name, status, drop)  # type: ignore[arg-type]
    if all(drop > 1 for drop in drops):
        assert descent.converged


def test_lower_learning_rates_are_tried_while_they_help() -> None:
    descent = Descent(1.0)
    rates = []
    for name, drop in (("1", 9.0), ("2", 4.0), ("3", 0.8)):
        plan = descent.plan()
        assert plan is not None
        assert (plan.parent, plan.ratio) == ("", 1.75)
        rates.append(plan.rate)
        descent.learn(name, "accepted" if drop <= 1 else "missed", drop)
    assert rates == pytest.approx([1.0, 0.2, 0.04])
    plan = descent.plan()
    assert plan is not None
    assert (plan.parent, plan.rate) == ("3", pytest.approx(0.04))


def test_the_next_step_is_as_large_as_what_is_left_of_delta() -> None:
    ratios = []
    for drop in (-3.0, 0.0, 0.25, 0.5, 0.9, 1.0):
        descent = Descent(1.0)
        descent.learn("1", "accepted", drop)
        plan = descent.plan()
        assert plan is not None
        ratios.append(plan.ratio)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] == ratios[1] == 2.0  # no step takes more
    assert ratios[-1] == pytest.approx(1.75**0.3)
    # What took a second training goes on no faster.
    descent = Descent(1.0)
    descent.learn("1", "missed", 1.5)
    descent.learn("2", "accepted", 0.0)
    plan = descent.plan()
    assert plan is not None
    assert plan.ratio == pytest.approx(1.75)


def test_a_candidate_is_trained_on_for_as_long_as_that_helps() -> None:
    descent = Descent(1.0)
    plans = []
    for name, drop in (("1", 2.0), ("2", 1.6), ("3", 1.3), ("4", 1.2)):
        plans.append(descent.plan())
        descent.learn(name, "missed", drop)
    assert [plan.parent for plan in plans if plan is not None] == ["", "1", "2", "3"]
    plan = descent.plan()
    assert plan is not None
    assert (plan.parent, plan.ratio) == ("", pytest.approx(1.75**0.5))


# --- latency ---------------------------------------------------------------------------------


def test_a_slower_function_is_told_from_an_equal_one() -> None:
    def work(count: int) -> int:
        return sum(range(count))

    slow = compare_calls(lambda: work(20_000), lambda: work(60_000))
    assert slow.is_slower
    assert slow.ratio > 1.5
    fast = compare_calls(lambda: work(60_000), lambda: work(20_000))
    assert fast.interval[1] < 1


# --- groups ----------------------------------------------------------------------------------


def test_predicted_costs_are_those_of_the_pruned_network() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_pruning")
    from ingot.optimizers.pruning import channel_groups, prune
    from ingot.optimizers.pruning.allocation import allocate
    from ingot.optimizers.pruning.cost import CostModel
    from ingot.optimizers.pruning.sensitivity import Sensitivity
    from ingot.zoo import get_model_by_name

    for name in ("resnet20", "mobilenet_v2", "vgg11"):
        torch.manual_seed(0)
        network = get_model_by_name(name, "cifar10").eval()
        inputs = ((torch.randn(2, 3, 32, 32),), {})
        groups = channel_groups(network, inputs)
        model = CostModel(network, groups)
        count = sum(parameter.numel() for parameter in network.parameters())
        assert model.parameters({}) == count
        curve = Sensitivity.of({0.25: 0.1, 0.5: 0.3, 0.75: 1.0})
        curves = {group.name: curve for group in groups}
        kept = allocate(groups, curves, model.parameters, model.saved_parameters, 1.8)
        keep = {group.name: list(range(kept[group.name])) for group in groups}
        pruned, _ = prune(network, keep, groups)
        left = sum(parameter.numel() for parameter in pruned.parameters())
        assert model.parameters(kept) == pytest.approx(left, rel=1e-6)
        assert count / left == pytest.approx(1.8, rel=0.1)
        aligned = allocate(groups, curves, model.parameters, model.saved_parameters, 1.8, align=8)
        wide = [group for group in groups if group.channels >= 16 and group.granularity == 1]
        assert all(aligned[group.name] % 8 == 0 for group in wide)


def test_sensitivities_never_fall() -> None:
    from ingot.optimizers.pruning.sensitivity import Sensitivity

    curve = Sensitivity.of({0.5: 0.4, 0.25: 0.5, 0.75: 2.0})
    assert curve.rises == (0.0, 0.5, 0.5, 2.0)
    points = [curve(step / 40) for step in range(41)]
    assert points == sorted(points)
    assert json.dumps(points)
