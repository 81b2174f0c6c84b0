"""The CSR runtime: the same outputs, faster or said not to be."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import bayespare
from bayespare import BayespareError, data, nets, runtime, sparse_runtime
from bayespare.runtime import CSRLinear


def sparse_net(width: int, density: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    with torch.no_grad():
        model[0].weight *= torch.rand_like(model[0].weight) < density
    return model


@pytest.mark.parametrize("shape", [(5,), (2, 5), (0, 5), (3, 2, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_says_what_the_dense_one_says(shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(5, 4, bias=bias).double()
    with torch.no_grad():
        layer.weight[:, 1:4] = 0
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(CSRLinear(layer)(x), layer(x), check_stride=False)


def test_a_large_sparse_layer_is_faster_and_the_small_one_stays():
    model, x = sparse_net(1000, 0.02), torch.randn(64, 784)
    found = sparse_runtime(model, x, batch=256)
    assert found.taken == ("0",)
    assert found.sparse_ms < found.dense_ms
    assert re.fullmatch(r"CSR for 0: .* ms at batch 256, dense .* ms \(.*x faster\)", str(found))
    assert isinstance(found.model[0], CSRLinear)
    assert type(found.model[2]) is nn.Linear
    assert type(model[0]) is nn.Linear
    with torch.no_grad():
        expected = model(x)
        for same in (
            found.model,
            copy.deepcopy(found.model),
            pickle.loads(pickle.dumps(found.model)),
        ):
            assert (same(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_where_it_does_not_pay_it_says_so(monkeypatch):
    model, x = sparse_net(20, 0.04), torch.randn(4, 784)

    def slow(models, example, *, batches, seconds):
        return {name: {str(batches[0]): 1.0 + (name == "csr")} for name in models}

    monkeypatch.setattr(runtime, "latency", slow)
    found = sparse_runtime(model, x, batch=3)
    assert found.taken == ()
    assert type(found.model[0]) is nn.Linear
    assert str(found) == ("CSR does not pay at batch 3 on this machine: 0 takes 2 ms, dense 1 ms")


def test_without_sparse_layers_nothing_is_tried():
    found = sparse_runtime(sparse_net(20, 0.06), torch.randn(4, 784))
    assert not found.layers
    assert str(found) == "CSR is not tried: no linear layer is 95% zero"


def test_an_example_that_does_not_fit_is_one_line():
    with pytest.raises(BayespareError, match="does not run on the example"):
        sparse_runtime(sparse_net(20, 0.01), torch.randn(4, 783))


def test_pruned_weights_are_stored_compactly_and_load_to_the_last_bit(tmp_path):
    """Real pruned weights: ``reduce`` on the bundled digits."""

    splits = data.load("digits", seed=0)
    model = nets.build("mlp:300", inputs=splits.train.inputs, outputs=10, seed=0)
    train = splits.train
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train.x), train.y).backward()
        optimizer.step()
    result = bayespare.reduce(
        model, train, valid=splits.valid, unit="weight", sparsity=0.96, share=0.5, finetune=1,
        between=0, samples=500,
    )  # fmt: skip
    folder = result.save(tmp_path / "run")
    run = bayespare.load(folder, model)
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], tensor)
    for name, std in result.posterior.std.items():
        assert torch.equal(run.posterior.std[name], std)
    stored = result.metrics["compact"]["bytes"]
    dense = 4 * sum(p.numel() for p in result.model.parameters())
    assert stored < 0.5 * dense
    assert (folder / "model.safetensors").stat().st_size < stored + 2000
    sparse = copy.deepcopy(result.model)
    for name, layer in result.model.named_modules():
        if isinstance(layer, nn.Linear):
            sparse.set_submodule(name, CSRLinear(layer))
    with torch.no_grad():
        expected = result.model(train.x)
        assert (sparse(train.x) - expected).abs().max() <= 1e-5 * expected.abs().max()
