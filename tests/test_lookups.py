"""Token ids that an embedding does not have are refused by name, not by PyTorch's IndexError."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayespare
from bayespare.data import from_tensors
from bayespare.errors import BayespareError
from bayespare.lookups import check_lookups, with_ids

ENTRIES, LENGTH = 50, 8
QUICK = {"sparsify": {"epochs": 6}, "reduce": {"rounds": 1, "finetune": 1, "force": True}}


class Reader(nn.Module):
    """Embedded tokens and their positions."""

    def __init__(self, positions: int = LENGTH) -> None:
        super().__init__()
        self.tokens = nn.Embedding(ENTRIES, 4)
        self.positions = nn.Embedding(positions, 4)
        self.fc = nn.Sequential(nn.Linear(4 * LENGTH, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        there = self.positions(torch.arange(x.shape[1], device=x.device))
        return self.fc((self.tokens(x) + there).flatten(1))


class Caster(Reader):
    """The same, for ids that come as decimals."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.long())


def rows(odd: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and labels; one id, far from the first rows, may be another."""
    x = torch.randint(0, ENTRIES, (60, LENGTH), generator=torch.Generator().manual_seed(0))
    if odd is not None:
        x[40, 3] = odd
    return x, torch.arange(60) % 2


@pytest.mark.parametrize("verb", ["sparsify", "reduce"])
@pytest.mark.parametrize(
    ("odd", "says"), [(70, "but the largest is 70"), (-1, "but the smallest is -1")]
)
def test_ids_that_an_embedding_does_not_have(verb, odd, says):
    good, bad = (from_tensors(*rows(id), tokens=True) for id in (None, odd))
    run = getattr(bayespare, verb)
    for name, parts in {"train": (bad, good), "valid": (good, bad)}.items():
        with pytest.raises(
            BayespareError, match=f"^{name}: layer 'tokens' .* from 0 to 49.*{says}"
        ):
            run(Reader(), parts[0], valid=parts[1], **QUICK[verb])


@pytest.mark.parametrize("kind", [Reader, Caster])
@pytest.mark.parametrize("verb", ["sparsify", "reduce"])
@pytest.mark.parametrize("form", ["decimals", "loader"])
def test_ids_that_come_as_decimals_or_from_a_loader_are_ids(verb, kind, form):
    x, y = rows()
    tokens = from_tensors(x, y, tokens=True)
    given = from_tensors(x, y) if form == "decimals" else DataLoader(TensorDataset(x, y), 16)
    torch.manual_seed(0)
    model = kind()
    one, two = (
        getattr(bayespare, verb)(model, data, valid=data, **QUICK[verb]) for data in (tokens, given)
    )
    assert two.config["tokens"]
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, two.model.state_dict()[name])


@pytest.mark.parametrize("verb", ["sparsify", "reduce"])
def test_what_is_looked_up_has_to_be_whole(verb):
    good, (x, y) = from_tensors(*rows()), rows()
    for name, parts in {"train": (x + 0.5, x), "valid": (x, x + 0.5)}.items():
        train, valid = (from_tensors(part, y) for part in parts)
        with pytest.raises(BayespareError, match=f"^{name}: layer 'tokens' looks up whole numbers"):
            getattr(bayespare, verb)(Reader(), train, valid=valid, **QUICK[verb])
    assert with_ids(nn.Linear(LENGTH, 2), good) is good
    large = from_tensors(torch.full((4, LENGTH), 2.0**24), torch.arange(4) % 2)
    assert with_ids(Reader(), large) is large  # it may stand for the next number, too


def test_examples_that_are_too_long_for_the_positions():
    with pytest.raises(BayespareError, match=r"layer 'positions' .* from 0 to 4.* largest is 7"):
        check_lookups(Reader(positions=5), {"train": rows()[0]})


def test_what_fits_is_left_alone():
    check_lookups(Reader(), {"train": rows()[0], "test": rows()[0]})
    check_lookups(nn.Linear(3, 2), {"train": torch.randn(5, 3)})
    # What else is wrong is another's to say.
    check_lookups(
        nn.Sequential(nn.Embedding(3, 2), nn.Linear(5, 1)), {"train": torch.ones(4, 2).long()}
    )
