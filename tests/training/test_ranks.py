"""Two gloo processes against one. They are started once, for all tests of this file."""

from typing import Any

import pytest
import torch
from rank_worker import (
    ALIKE,
    EQUAL,
    TRANSFORMERS,
    everything_at_once,
    gated_transformer,
    penalised_step,
    scores,
    searched,
    together,
    transformer_curvature,
    transformer_steps,
)

from bayespare.training import ranks
from bayespare.training.finish import finish

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(tmp_path_factory.mktemp("ranks"), everything_at_once)


@pytest.mark.parametrize("name", EQUAL)
def test_two_ranks_do_what_one_process_does(found: list[dict[str, Any]], name: str) -> None:
    alone = searched(EQUAL[name])
    for rank in found:
        there = rank[name]
        assert len(there["history"]) == len(alone["history"])
        for row, other in zip(alone["history"], there["history"], strict=True):
            assert row["phase"] == other["phase"]
            assert row.get("parameters") == other.get("parameters")
            for key in ("train_nll", "penalty", "valid_nll"):
                assert other.get(key, 0.0) == pytest.approx(row.get(key, 0.0), rel=1e-5, abs=1e-6)
        assert there["name"] == alone["name"]
        for key, value in alone.items():
            if key.startswith("keep/"):
                assert torch.equal(there[key], value), key
            if key.startswith("odds/"):
                torch.testing.assert_close(there[key], value, rtol=1e-5, atol=5e-4)


@pytest.mark.parametrize("name", [*EQUAL, *ALIKE])
def test_ranks_have_the_same_network_and_verdict(found: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in found)
    assert first["history"] == second["history"]
    assert first["name"] == second["name"]
    tensors = [key for key, value in first.items() if isinstance(value, torch.Tensor)]
    assert [key for key in tensors if not torch.equal(first[key], second[key])] == []
    kept = [value for key, value in first.items() if key.startswith("keep/")]
    assert not all(bool(line.all()) for line in kept), "nothing was cut"


def test_noise_is_each_ranks_own_and_then_common_again(found: list[dict[str, Any]]) -> None:
    first, second = found
    assert not (first["own"] == second["own"]).any()
    assert torch.equal(first["common"], second["common"])


def test_ranks_share_validation(found: list[dict[str, Any]]) -> None:
    for rank in found:
        torch.testing.assert_close(rank["scores"], scores())


def test_the_penalty_counts_once(found: list[dict[str, Any]]) -> None:
    alone = penalised_step()
    for rank in found:
        assert rank["step"]["penalty"] == alone["penalty"] == 3.0
        assert rank["step"]["nll"] == pytest.approx(alone["nll"], rel=1e-6)
        torch.testing.assert_close(rank["step"]["weight"], alone["weight"])


def test_rows_that_are_not_finite_stop_all_ranks(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert "the loss became nan" in rank["stopped"]


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_sharded_transformer_takes_the_steps_of_a_whole_one(
    found: list[dict[str, Any]], kind: str
) -> None:
    alone = transformer_steps(kind, sharded=False)
    whole = sum(value.numel() for value in alone["state"].values())
    for rank in found:
        there = rank["sharded"][kind]
        assert there["nll"] == pytest.approx(alone["nll"], rel=1e-4)
        assert there["penalty"] == pytest.approx(alone["penalty"], rel=1e-4)
        assert there["state"].keys() == alone["state"].keys()
        for name, value in alone["state"].items():
            torch.testing.assert_close(there["state"][name], value, rtol=1e-3, atol=1e-4)
        for name, value in alone["method"].items():
            torch.testing.assert_close(there["method"][name], value, rtol=1e-4, atol=1e-4)
        assert "is sharded over the ranks (FSDP), and nothing can be cut" in there["refused"]
        assert there["moments"] < 0.6 * whole
        # One block, and what is in none, is here at a time.
        assert 0 < there["gathered"] < 0.7 * whole
    assert alone["moments"] == whole


def test_the_state_of_a_sharded_transformer_can_be_decided(found: list[dict[str, Any]]) -> None:
    network, method = gated_transformer("vit")
    network.load_state_dict(found[0]["sharded"]["vit"]["state"])
    method.load_state_dict(found[0]["sharded"]["vit"]["method"])
    with torch.no_grad():
        method.gates[0] = -1.0
    method.decide()
    done = finish(TRANSFORMERS["vit"](), method, torch.randn(2, 1, 8, 8))
    lost = sum(int((~line).sum()) for line in done.verdict.keep.values())
    assert lost == 1
    assert done.masked_difference < 1e-5


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_the_curvature_of_a_sharded_transformer(found: list[dict[str, Any]], kind: str) -> None:
    alone = transformer_curvature(kind, sharded=False)
    entries = sum(block.numel() for block in alone["diagonals"].values())
    for rank in found:
        there = rank["sharded curvature"][kind]
        assert there["examples"] == alone["examples"] == 24
        assert there["entries"] < 0.6 * entries == 0.6 * alone["entries"]
        assert there["diagonals"].keys() == alone["diagonals"].keys()
        for name, block in alone["diagonals"].items():
            # A key's bias has none but rounding.
            most = 1e-4 * float(block.max()) + 1e-9
            torch.testing.assert_close(there["diagonals"][name], block, rtol=1e-4, atol=most)
        assert "give the wiring of a sharded model" in there["refused"][0]
        assert "Kronecker factors are not spread" in there["refused"][1]


def test_a_posterior_of_a_number_per_weight_is_not_sharded(found: list[dict[str, Any]]) -> None:
    assert "a posterior with a number for every weight" in found[0]["not sharded"]


def test_rank_0_has_the_word(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["said"] == {"from": 0, "pi": 3.25}
        assert rank["agreed"].tolist() == [False, True, False]
        assert "no room" in rank["failed"]
        assert "the seed of 1 of the 2 processes differs" in rank["differs"]
        assert rank["few"] == "1 rows a step are fewer than the 2 processes"


def test_one_process_is_a_world_of_its_own() -> None:
    assert (ranks.world(), ranks.rank(), ranks.first()) == (1, 0, True)
    assert ranks.share(7) == slice(0, 7)
    assert ranks.whole(7) == 7
    assert ranks.from_first(lambda: (1, 2)) == (1, 2)


@pytest.mark.parametrize(("rows", "world"), [(7, 3), (2, 3), (12, 4), (0, 2)])
def test_shares_are_all_rows_once(monkeypatch: pytest.MonkeyPatch, rows: int, world: int) -> None:
    monkeypatch.setattr(ranks, "world", lambda: world)
    taken = []
    for number in range(world):
        monkeypatch.setattr(ranks, "rank", lambda number=number: number)
        taken.append(list(range(rows))[ranks.share(rows)])
    assert [row for part in taken for row in part] == list(range(rows))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1
