"""Several processes over one batch give the numbers of one process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from must_core import gradient
from must_core.errors import InvalidConfig
from must_core.parallel import SINGLE, Ranks, joined
from tests.support import torchrun
from tests.support.runs import BATCH, CONFIG, STEPS, history, make_run, train
from tests.support.service import free_port

CASES: dict[str, dict[str, Any]] = {
    "masked": {},
    "without masks": {"masked": False},
    "moving average": {"classes": 600},
    "running marginal": {"fairness_form": "running", "micro_batch_size": 3},
    "shares in parts": {"micro_batch_size": 3},
    "parts on one rank only": {"batch_size": 9, "micro_batch_size": 4, "classes": 600},
    "one image each, and two": {"batch_size": 3, "out_of_memory_above": 1},
    "float32": {"dtype": "float32"},
    "too little memory on one rank": {"out_of_memory_above": 2},
}
Results = list[dict[str, dict[str, Any]]]


def program(output: Path, cases: dict[str, dict[str, Any]]) -> list[str]:
    return ["-m", "tests.support.ranks_main", str(output), json.dumps(cases)]


def read(output: Path, world_size: int) -> Results:
    """What each rank ended with, case by case."""
    return [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(world_size)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    output = tmp_path_factory.mktemp("two")
    torchrun.finished(torchrun.start(program(output, CASES), processes=2))
    return read(output, 2)


def largest_difference(a: list[list[float]], b: list[list[float]]) -> float:
    assert len(a) == len(b) == STEPS
    return max(abs(x - y) for row_a, row_b in zip(a, b, strict=True) for x, y in zip(row_a, row_b, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_losses_of_one_process(two_ranks: Results, name: str) -> None:
    case = CASES[name]
    config = replace(CONFIG, batch_size=case.get("batch_size", BATCH), fairness_form=case.get("fairness_form", "paper"))
    alone = make_run(config, num_classes=case.get("classes", 10), dtype=getattr(torch, case.get("dtype", "float64")))
    expected = history(train(alone, masked=case.get("masked", True)))
    first, second = (dict(rank[name]) for rank in two_ranks)
    assert largest_difference(first.pop("losses"), expected) < 1e-5
    assert largest_difference(second.pop("losses"), expected) < 1e-5
    assert first == second  # weights to the bit
    if "out_of_memory_above" in case:
        assert first["micro_batch_size"] == case["out_of_memory_above"]


def test_fairness_within_each_rank_would_be_noticed(two_ranks: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the mean of what two halves say by themselves is another run."""
    halves = make_run(micro_batch_size=4)
    monkeypatch.setattr(
        gradient.BatchGradient,
        "_fairness",
        lambda _self, own_K, _whole: (gradient.objective.fairness(own_K / own_K.sum()) / 2, None),
    )
    assert largest_difference(two_ranks[0]["masked"]["losses"], history(train(halves))) > 1e-3


def test_shares_may_be_uneven(tmp_path: Path) -> None:
    torchrun.finished(torchrun.start(program(tmp_path, {"masked": {}}), processes=3))
    ranks = [rank["masked"] for rank in read(tmp_path, 3)]
    assert largest_difference(ranks[0]["losses"], history(train(make_run()))) < 1e-5
    assert len({rank["student"] for rank in ranks}) == len({rank["teacher"] for rank in ranks}) == 1


def test_two_hosts_meet(tmp_path: Path, two_ranks: Results) -> None:
    port = free_port()
    agents = [
        torchrun.start(program(tmp_path, {"masked": {}}), processes=1, hosts=2, host=host, port=port)
        for host in range(2)
    ]
    for agent in agents:
        torchrun.finished(agent)
    assert [rank["masked"] for rank in read(tmp_path, 2)] == [rank["masked"] for rank in two_ranks]


def test_shares_are_the_whole() -> None:
    for num_items in (3, 8, 64, 1000):
        for world_size in (1, 2, 3):
            ranks = [Ranks(rank, world_size) for rank in range(world_size)]
            parts = [list(range(num_items))[r.share_of(num_items)] for r in ranks]
            assert [item for part in parts for item in part] == list(range(num_items))
            assert max(map(len, parts)) == ranks[0].largest_share(num_items)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(InvalidConfig):
        Ranks(0, 3).share_of(2)


def test_one_process_asks_nobody() -> None:
    tensor = torch.ones(2, requires_grad=True)
    assert SINGLE.any(True, False) == (True, False)
    assert SINGLE.agreed("x") == "x"
    assert not SINGLE.sum(tensor).requires_grad
    assert SINGLE.agreed_tensors({"a": tensor})["a"] is tensor


@pytest.mark.parametrize(
    ("max_restarts", "shared", "refused"), [("3", "True", True), ("3", "False", False), ("0", "True", False)]
)
def test_restarts_that_would_look_for_old_addresses_are_refused(
    monkeypatch: pytest.MonkeyPatch, max_restarts: str, shared: str, refused: bool  # noqa: FBT001
) -> None:  # fmt: skip
    class Joining(Exception):
        pass

    def join(*_args: object, **_options: object) -> None:
        raise Joining

    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    for name, value in {
        "WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": max_restarts, "TORCHELASTIC_USE_AGENT_STORE": shared
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConfig if refused else Joining), joined("cpu"):
        pass
