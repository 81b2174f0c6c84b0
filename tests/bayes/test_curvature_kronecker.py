"""Kronecker factors: exact where they should be, the card's numbers, sums over ranks."""

import math
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from curvature_nets import Decoder, Vision, cases
from torch import nn
from torch.func import functional_call, jacrev

from bayespare.bayes.curvature import all_reduce, curvature


def dense_blocks(model, x, hessian):
    """Block of each parameter of sum_n J' L J, with L of one example by ``hessian(output)``."""
    model.eval()
    values = {name: p.detach() for name, p in model.named_parameters()}
    blocks = {name: torch.zeros(p.numel(), p.numel()) for name, p in values.items()}
    for x_n in x:

        def run(values, x=x_n):
            return functional_call(model, values, (x[None],))[0].flatten()

        middle = hessian(run(values))
        for name, rows in jacrev(run)(values).items():
            flat = rows.flatten(1)
            blocks[name] += flat.T @ middle @ flat
    return blocks


def softmax_hessian(output):
    p = output.softmax(0)
    return p.diag() - p.outer(p)


def test_published_softmax_layer(float64):
    """Card, vector 3: factors, diagonals and log-determinants with prior precision 1/2."""
    layer = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.25], [0, 0.25], [-0.5, 0]]))
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, -1]])
    y = torch.tensor([0, 1, 2, 0])
    for data in ([(x, y)], list(zip(x.split(1), y.split(1), strict=True))):

        def block(data=data, **options):
            return curvature(layer, "classification", data, **options)

        factors = block(kind="ggn", structure="kfac").factors["weight"]
        torch.testing.assert_close(factors.input, torch.tensor([[1.5, -0.25], [-0.25, 0.75]]))
        row = torch.tensor([0.8665881483, -0.5522048729, -0.3143832754])
        torch.testing.assert_close(factors.output[0], row, rtol=0, atol=1e-9)
        diagonal = block(kind="ggn").diagonal["weight"]
        expected = [1.2353787663, 0.6166301438, 1.0126792276, 0.6240948257]
        expected += [0.598327027, 0.4474926083]
        torch.testing.assert_close(diagonal.flatten(), torch.tensor(expected), rtol=0, atol=1e-9)
        fisher = block(kind="ef", structure="kfac").factors["weight"]
        found = [
            (diagonal.flatten() + 0.5).log().sum(),
            (factors.dense() + 0.5 * torch.eye(6)).logdet(),
            (block(kind="ef").diagonal["weight"] + 0.5).log().sum(),
            (fisher.dense() + 0.5 * torch.eye(6)).logdet(),
            (5 * factors.dense() + 0.5 * torch.eye(6)).logdet(),
        ]
        expected = [1.2322535564, 0.7312070206, 0.2261803389, 0.2866441722, 6.0023119663]
        torch.testing.assert_close(torch.stack(found), torch.tensor(expected), rtol=0, atol=1e-9)


def test_exact_for_one_example(float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(1, 4)
    data = [(x, torch.zeros(1, dtype=torch.int64))]
    found = curvature(model, "classification", data, kind="ggn", structure="kfac")
    for name, block in dense_blocks(model, x, softmax_hessian).items():
        torch.testing.assert_close(found.factors[name].dense(), block)


class _Tokens(nn.Module):
    """A deep linear network over tokens; the outputs are all tokens', or their mean."""

    def __init__(self, *, mean: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.mean = mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(x)
        return x.mean(1) if self.mean else x.flatten(1)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_exact_for_deep_linear_networks_in_its_setting(sharing, float64):
    """Eschenhagen et al. 2023, propositions 1 and 2."""
    torch.manual_seed(0)
    x = torch.randn(6, 5, 3)
    for mean in (False, True):
        model = _Tokens(mean=mean)
        data = [(x[:4], torch.zeros(4)), (x[4:], torch.zeros(2))]
        found = curvature(
            model, "regression", data, kind="ggn", structure="kfac", sharing=sharing
        ).factors
        blocks = dense_blocks(model, x, lambda output: torch.eye(len(output)))
        for name, block in blocks.items():
            exact = torch.allclose(found[name].dense(), block)
            # The input of a bias is the same at all positions: reducing loses nothing.
            constant = sharing == "reduce" and name.endswith("bias")
            assert exact == (constant or mean == (sharing == "reduce")), name


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_convolution_is_the_linear_layer_of_its_patches(sharing, float64):
    """A convolution whose kernel covers its input, and one with groups, by hand."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 4, 3, 3), torch.zeros(6, dtype=torch.int64)
    whole = nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten())
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        flat[1].weight.copy_(whole[0].weight.flatten(1))
        flat[1].bias.copy_(whole[0].bias)
    options = {"kind": "ggn", "structure": "kfac", "sharing": sharing}
    ours = curvature(whole, "classification", [(x, y)], **options).factors
    theirs = curvature(flat, "classification", [(x, y)], **options).factors
    for leaf in ("weight", "bias"):
        torch.testing.assert_close(ours[f"0.{leaf}"].dense(), theirs[f"1.{leaf}"].dense())

    grouped = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2, bias=False), nn.Flatten())
    data = [(x, torch.zeros(6, 24))]
    found = curvature(grouped, "regression", data, kind="ef", structure="kfac")
    block = found.factors["0.weight"]
    assert block.output.shape == (2, 3, 3)
    assert block.input.shape == (2, 8, 8)
    rows = torch.nn.functional.unfold(x, 2).unflatten(1, (2, 8)).permute(1, 0, 3, 2).flatten(1, 2)
    torch.testing.assert_close(block.input, rows.mT @ rows / 24)


class _Video(nn.Module):
    """A convolution of every frame, frames folded into the batch; read at its mean."""

    def __init__(self, *, folded: bool, minor: bool = False) -> None:
        super().__init__()
        self.look = nn.Conv2d(2, 4, 2, groups=2) if folded else nn.Conv3d(2, 4, (1, 2, 2), groups=2)
        self.folded, self.minor = folded, minor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.folded:
            return self.look(x.transpose(1, 2)).mean((2, 3, 4))
        count, frames = x.shape[:2]
        along = x.transpose(0, 1) if self.minor else x
        seen = self.look(along.reshape(count * frames, *x.shape[2:])).mean((2, 3))
        return (
            seen.view(frames, count, -1).mean(0)
            if self.minor
            else seen.unflatten(0, (count, frames)).mean(1)
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("minor", [False, True])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_folding_frames_into_the_batch_changes_nothing(sharing, minor, weighted, float64):
    """The same network as a convolution in three dimensions, which folds nothing."""
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, 2, 4, 4), torch.randint(0, 4, (5,))
    data = [(x, y, torch.rand(5))] if weighted else [(x, y)]
    one, two = _Video(folded=True, minor=minor), _Video(folded=False)
    with torch.no_grad():
        two.look.weight.copy_(one.look.weight.unsqueeze(2))
        two.look.bias.copy_(one.look.bias)
    options = {"kind": "ggn", "structure": "kfac", "sharing": sharing}
    ours = curvature(one, "classification", data, **options).factors
    theirs = curvature(two, "classification", data, **options).factors
    for name in ("look.weight", "look.bias"):
        torch.testing.assert_close(ours[name].dense(), theirs[name].dense())


def test_every_parameter_has_one_block():
    for name, (model, x) in cases().items():
        model.eval()
        y = torch.zeros(len(x), dtype=torch.int64)
        found = curvature(model, "classification", [(x, y)], structure="kfac")
        parameters = {n: p.shape for n, p in model.named_parameters()}
        assert not found.diagonal.keys() & found.factors.keys(), name
        assert {n: block.shape for n, block in found.diagonals().items()} == parameters
        exact = curvature(model, "classification", [(x, y)], kind="ggn").diagonal
        for parameter, block in found.diagonal.items():
            assert block.shape == exact[parameter].shape
        for factors in found.factors.values():
            if factors.output.shape[-1] * math.prod(factors.shape) < 2000:
                dense = factors.dense().diagonal().reshape(factors.shape)
                torch.testing.assert_close(dense, factors.diagonal())


class _Sentences(nn.Module):
    """The sum of the embeddings of all words but the padding, through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(6, 3, padding_idx=-6)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.words(x).sum(1)))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_padding_counts_for_nothing(sharing, float64):
    torch.manual_seed(0)
    model, y = _Sentences(), torch.randint(0, 2, (20,))
    words = torch.randint(1, 6, (20, 2))
    options = {"kind": "ggn", "structure": "kfac", "sharing": sharing}
    plain = curvature(model, "classification", [(words, y)], **options).factors["words.weight"]
    padded = torch.cat([words, torch.zeros(20, 3, dtype=torch.int64)], 1)
    empty = (torch.zeros_like(padded), y)
    for batches in [(padded, y)], [(padded[:8], y[:8]), (padded[8:], y[8:]), empty]:
        found = curvature(model, "classification", batches, **options).factors["words.weight"]
        assert found.rows == plain.rows == 40
        torch.testing.assert_close(found.input, plain.input)
        torch.testing.assert_close(found.output, plain.output)
    # One word of one example: the block is exact.
    x = padded[:1, 1:]
    found = curvature(model, "classification", [(x, y[:1])], **options).factors["words.weight"]
    exact = dense_blocks(model, x, softmax_hessian)["words.weight"]
    torch.testing.assert_close(found.dense(), exact)
    assert not found.diagonal()[0].any()


def test_blocks_that_have_no_kronecker_form_are_exact_diagonals():
    model, x = cases()["tied"]
    y = torch.zeros(len(x), dtype=torch.int64)
    found = curvature(model, "classification", [(x, y)], kind="ef", structure="kfac")
    exact = curvature(model, "classification", [(x, y)], kind="ef").diagonal
    assert set(found.diagonal) == {"tokens.weight", "norm.weight", "norm.bias"}
    for name, block in found.diagonal.items():
        torch.testing.assert_close(block, exact[name])
    assert found.factors["places.weight"].input.ndim == 1
    assert found.factors["up.weight"].transposed
    assert isinstance(model, Decoder)


def test_attention_has_a_block_for_each_projection():
    torch.manual_seed(0)
    model = Vision().double()
    x, y = torch.randn(1, 4, 2).double(), torch.zeros(1, dtype=torch.int64)
    found = curvature(model, "classification", [(x, y)], kind="ggn", structure="kfac").factors
    block = found["layer.self_attn.in_proj_weight"]
    assert block.output.shape == (3, 4, 4)
    assert block.input.shape == (3, 4, 4)
    torch.testing.assert_close(block.input[0], block.input[2])
    assert found["layer.self_attn.in_proj_bias"].output.shape == (3, 4, 4)


def _rank(rank, folder, x, y):
    torch.set_num_threads(1)
    method = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    some = slice(0, 5) if rank == 0 else slice(5, None)
    found = all_reduce(
        curvature(model, "classification", [(x[some], y[some])], kind="ef", structure="kfac")
    )
    torch.save(found.diagonals() | {"examples": torch.tensor(found.examples)}, f"{folder}/{rank}")
    dist.destroy_process_group()


def test_ranks_add_up():
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    alone = curvature(model, "classification", [(x, y)], kind="ef", structure="kfac")
    assert all_reduce(alone) is alone
    with tempfile.TemporaryDirectory() as folder:
        other = mp.get_context("spawn").Process(target=_rank, args=(1, folder, x, y))
        other.start()
        _rank(0, folder, x, y)
        other.join()
        for rank in range(2):
            found = torch.load(Path(folder, str(rank)), weights_only=True)
            assert int(found.pop("examples")) == 8
            for name, block in alone.diagonals().items():
                torch.testing.assert_close(found[name], block)


@pytest.mark.parametrize("kind", ["ggn", "ef"])
def test_factors_do_not_depend_on_how_a_weight_lies_in_memory(kind, float64):
    """Weights that come from elsewhere are often transposes."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

    def blocks():
        return curvature(model, "classification", [(x, y)], kind=kind, structure="kfac").diagonals()

    before = blocks()
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    for name, found in blocks().items():
        torch.testing.assert_close(found, before[name], rtol=1e-9, atol=1e-12)
