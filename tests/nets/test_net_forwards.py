"""Each network against the obvious slow way to compute it from the paper's formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayespare.nets import build

close = torch.testing.assert_close
pytestmark = pytest.mark.usefixtures("float64")


def ready(spec: str, inputs: tuple[int, ...], outputs: int = 3) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode whose parameters and statistics are all at random, and data."""
    torch.manual_seed(0)
    net = build(spec, inputs=inputs, outputs=outputs).eval()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn(tensor.shape))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.3, 2)
    return net, torch.randn(2, *inputs)


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, var, gain, bias = (
        t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + 1e-5).sqrt() * gain + bias


def layer_norm(x: Tensor, norm: nn.LayerNorm, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias
    )


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    y = torch.einsum("...i,oi->...o", x, layer.weight)
    return y if layer.bias is None else y + layer.bias


def patch_rows(x: Tensor, size: int) -> Tensor:
    """Every patch as one row of numbers, row by row of the image."""
    rows = [
        x[:, :, i : i + size, j : j + size].flatten(1)
        for i in range(0, x.shape[2], size)
        for j in range(0, x.shape[3], size)
    ]
    return torch.stack(rows, dim=1)


def embed(x: Tensor, layer: nn.Conv2d, size: int) -> Tensor:
    y = patch_rows(x, size) @ layer.weight.flatten(1).T
    return y if layer.bias is None else y + layer.bias


def attend(x: Tensor, layer: nn.Module, heads: int, width: int) -> Tensor:
    """Softmax attention, one head and one query at a time."""
    q, k, v = linear(x, layer.query), linear(x, layer.key), linear(x, layer.value)
    y = torch.zeros_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for n in range(x.shape[0]):
            for t in range(x.shape[1]):
                scores = k[n, :, part] @ q[n, t, part] / math.sqrt(width)
                weights = scores.exp() / scores.exp().sum()
                y[n, t, part] = weights @ v[n, :, part]
    return linear(y, layer.out)


def test_vit_is_pre_norm_attention_and_mlp_with_a_class_token() -> None:
    net, x = ready("vit:dim=12,depth=2,heads=3,mlp=10,patch=4", (3, 8, 12))
    got = net(x)
    x = embed(x, net.patch, 4)
    x = torch.cat([net.tokens.class_token.repeat(2, 1, 1), x], dim=1) + net.tokens.positions
    for block in net.blocks:
        x = x + attend(layer_norm(x, block.attention.norm, 1e-5), block.attention.heads, 3, 4)
        y = gelu_tanh(linear(layer_norm(x, block.mlp.norm, 1e-5), block.mlp.fc1))
        x = x + linear(y, block.mlp.fc2)
    close(got, linear(layer_norm(x, net.norm, 1e-5)[:, 0], net.head))


def test_simple_vit_has_fixed_positions_no_norm_and_the_mean_of_all_tokens() -> None:
    net, x = ready("simple-vit:dim=8,depth=2,heads=2,head=3,mlp=10,patch=4", (1, 8, 12))
    net.waves.positions.copy_(
        build("simple-vit:dim=8,patch=4", inputs=(1, 8, 12), outputs=2).waves.positions
    )
    biases = {n for n, _ in net.named_parameters() if n.endswith("bias")}
    assert biases == {f"blocks.{i}.mlp.fc2.bias" for i in range(2)}
    got = net(x)
    x = embed(x, net.patch, 4)
    for t in range(6):
        row, column = divmod(t, 3)
        for i, rate in enumerate((1.0, 1e-4)):
            for offset, angle in ((0, column * rate), (4, row * rate)):
                x[:, t, offset + i] += math.sin(angle)
                x[:, t, offset + 2 + i] += math.cos(angle)
    for block in net.blocks:
        x = x + attend(x, block.attention.heads, 2, 3)
        x = x + linear(gelu_tanh(linear(x, block.mlp.fc1)), block.mlp.fc2)
    close(got, linear(x.sum(1) / 6, net.head))


def test_mixer_mixes_patches_then_channels() -> None:
    net, x = ready("mixer:dim=5,depth=2,tokens=7,mlp=4,patch=4", (3, 8, 12))
    got = net(x)
    x = embed(x, net.patch, 4)
    for block in net.blocks:
        y = torch.einsum(
            "ntc,ht->nch", layer_norm(x, block.tokens.norm, 1e-6), block.tokens.fc1.weight
        )
        y = gelu_tanh(y + block.tokens.fc1.bias)
        y = torch.einsum("nch,th->ntc", y, block.tokens.fc2.weight)
        x = x + y + block.tokens.fc2.bias[:, None]
        y = gelu_tanh(linear(layer_norm(x, block.channels.norm, 1e-6), block.channels.fc1))
        x = x + linear(y, block.channels.fc2)
    close(got, linear(layer_norm(x, net.norm, 1e-6).mean(1), net.head))


def test_residual_mlp_adds_each_block_to_what_came() -> None:
    net, x = ready("residual-mlp:5,4", (2, 3))
    got = net(x)
    x = linear(x.flatten(1), net.embed)
    for block in (net.block1, net.block2):
        y = linear(x, block.fc1)
        x = x + linear(y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), block.fc2)
    close(got, linear(x, net.head))


@pytest.mark.parametrize("shortcut", ["a", "b"])
def test_resnet_blocks_add_the_shortcut_before_the_last_activation(shortcut: str) -> None:
    net, x = ready(f"resnet20:width=4,shortcut={shortcut},act=tanh", (3, 9, 8))
    got = net(x)
    x = torch.tanh(batch_norm(F.conv2d(x, net.conv1.weight, padding=1), net.bn1))
    for layer in (net.layer1, net.layer2, net.layer3):
        assert len(layer) == 3
        for i, block in enumerate(layer):
            stride = 2 if i == 0 and layer is not net.layer1 else 1
            y = F.conv2d(x, block.conv1.weight, stride=stride, padding=1)
            y = torch.tanh(batch_norm(y, block.bn1))
            y = batch_norm(F.conv2d(y, block.conv2.weight, padding=1), block.bn2)
            if stride == 2 and shortcut == "b":
                conv, norm = block.downsample
                x = batch_norm(F.conv2d(x, conv.weight, stride=2), norm)
            elif stride == 2:  # every other pixel, zeros for the new channels
                skipped = torch.zeros_like(y)
                for channel in range(x.shape[1]):
                    for row in range(0, x.shape[2], 2):
                        for column in range(0, x.shape[3], 2):
                            skipped[:, channel, row // 2, column // 2] = x[:, channel, row, column]
                x = skipped
            x = torch.tanh(x + y)
    assert x.shape == (2, 16, 3, 2)
    close(got, linear(x.mean((2, 3)), net.fc))


def test_resnet18_has_the_names_and_strides_that_published_weights_expect() -> None:
    with torch.device("meta"):
        net = build("resnet18", inputs=(3, 224, 224), outputs=1000)
        names = list(net.state_dict())
        sizes = [
            layer(torch.empty(1, 3, 224, 224)).shape[2:] for layer in (net[:4], net[:5], net[:8])
        ]
    assert sizes == [(56, 56), (56, 56), (7, 7)]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    block = ["conv1.weight", *(f"bn1.{n}" for n in norm)]
    block += [line.replace("1", "2") for line in block]
    down = ["downsample.0.weight", *(f"downsample.1.{n}" for n in norm)]
    expected = ["conv1.weight", *(f"bn1.{n}" for n in norm)]
    for layer in (1, 2, 3, 4):
        for number in (0, 1):
            lines = block + (down if layer > 1 and number == 0 else [])
            expected += [f"layer{layer}.{number}.{line}" for line in lines]
    assert names == [*expected, "fc.weight", "fc.bias"]


def test_the_stem_follows_the_size_of_the_images_unless_told() -> None:
    for spec, side, kernel in (
        ("resnet18:width=2", 64, 7),
        ("resnet18:width=2", 63, 3),
        ("resnet18:width=2,stem=cifar", 64, 3),
        ("resnet18:width=2,stem=imagenet", 32, 7),
    ):
        net = build(spec, inputs=(3, side, side), outputs=2)
        assert net.conv1.kernel_size == (kernel, kernel)
        assert hasattr(net, "maxpool") == (kernel == 7)


def test_fixup_blocks_shift_before_each_convolution_and_scale_after() -> None:
    net, x = ready("resnet20:width=4,norm=fixup,act=tanh", (3, 8, 8))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    got = net(x)
    x = torch.tanh(F.conv2d(x, net.conv1.weight, padding=1) + net.shift1.bias)
    for block in (b for layer in (net.layer1, net.layer2, net.layer3) for b in layer):
        inner, stride = block.residual, block.residual.conv1.stride[0]
        shifted = x + block.shift1a.bias
        y = F.conv2d(shifted, inner.conv1.weight, stride=stride, padding=1) + inner.shift1b.bias
        y = F.conv2d(torch.tanh(y) + inner.shift2a.bias, inner.conv2.weight, padding=1)
        y = y * inner.scale.gain + inner.shift2b.bias
        if stride == 2:
            half = F.avg_pool2d(shifted, 1, stride=2)
            x = torch.cat([half, torch.zeros_like(half)], dim=1)
        x = torch.tanh(x + y)
    close(got, linear(x.mean((2, 3)) + net.shift2.bias, net.fc))


@pytest.mark.parametrize("norm", ["batch", "fixup"])
def test_wide_blocks_activate_first_and_project_what_was_activated(norm: str) -> None:
    net, x = ready(f"wrn:10,1,norm={norm},act=tanh", (3, 8, 8))
    shift = norm == "fixup"

    def first(y: Tensor, layer: nn.Module) -> Tensor:
        return torch.tanh(y + layer.bias if shift else batch_norm(y, layer))

    got = net(x)
    x = F.conv2d(x, net.conv1.weight, padding=1) + (net.shift1.bias if shift else 0)
    for block in (b for layer in (net.layer1, net.layer2, net.layer3) for b in layer):
        inner, stride = block.residual, block.residual.conv1.stride[0]
        a = first(x, block.norm1)
        y = first(F.conv2d(a, inner.conv1.weight, stride=stride, padding=1), inner.norm2)
        y = F.conv2d(y + (inner.shift2.bias if shift else 0), inner.conv2.weight, padding=1)
        y = y * inner.scale.gain + inner.shift3.bias if shift else y
        if x.shape != y.shape:
            x = F.conv2d(a, block.shortcut.weight, stride=stride)
        x = x + y
    x = torch.tanh(x) if shift else first(x, net.bn1)
    close(got, linear(x.mean((2, 3)) + (net.shift2.bias if shift else 0), net.fc))


def test_fixup_starts_with_dead_branches_scaled_convolutions_and_a_dead_head() -> None:
    net = build("resnet18:width=32,norm=fixup", inputs=(3, 8, 8), outputs=10, seed=0)
    blocks = [b for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for b in layer]
    for block in blocks:
        weight = block.residual.conv1.weight
        spread = weight.std().item() * math.sqrt(weight[0].numel())
        assert spread == pytest.approx(math.sqrt(2 / len(blocks)), rel=0.1)
        assert not block.residual.conv2.weight.any()
        assert block.residual.scale.gain == 1
    assert not net.fc.weight.any()
    assert net.conv1.weight.any()


def test_lenet_is_tanh_and_mean_pools_on_padded_images() -> None:
    net, x = ready("lenet:2,3,4,5", (1, 28, 29))
    got = net(x)
    padded = torch.zeros(2, 1, 32, 32)
    padded[:, :, 2:30, 1:30] = x
    x = padded
    for i in (1, 2, 3):
        conv = getattr(net, f"conv{i}")
        x = torch.tanh(F.conv2d(x, conv.weight, conv.bias))
        if i < 3:
            x = (
                x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]
            ) / 4
    assert x.shape == (2, 4, 1, 1)
    close(got, linear(torch.tanh(linear(x.flatten(1), net.fc1)), net.fc2))


@pytest.mark.parametrize(
    ("spec", "inputs", "pad"),
    [
        ("lenet:kernel=3,pool=max,act=relu", (1, 28, 28), None),
        ("lenet", (1, 40, 33), None),
        ("lenet", (1, 33, 27), (2, 3, 0, 0)),
        ("vit:dim=8,depth=1", (1, 28, 28), None),
        ("vit:dim=8,depth=1,image=32", (28, 28), (2, 2, 2, 2)),
        ("mixer:dim=8,depth=1,image=32", (1, 28, 31), (0, 1, 2, 2)),
    ],
)
def test_zeros_go_around_images_that_are_too_small(spec, inputs, pad) -> None:
    net = build(spec, inputs=inputs, outputs=2)
    assert (net.pad.padding if hasattr(net, "pad") else None) == pad
    assert net(torch.randn(1, *inputs)).shape == (1, 2)


@pytest.mark.parametrize("name", ["vit", "simple-vit"])
def test_a_head_is_rows_of_three_layers_and_columns_of_one(name: str) -> None:
    net, x = ready(f"{name}:dim=8,depth=1,heads=3,head=4,mlp=6,patch=4", (1, 8, 8))
    attention = net.blocks[0].attention.heads
    assert attention.heads == 3
    with torch.no_grad():
        attention.out.weight[:, 4:8] = 0
        silenced = net(x)
        keep = [0, 1, 2, 3, 8, 9, 10, 11]
        for layer in (attention.query, attention.key, attention.value):
            layer.weight = nn.Parameter(layer.weight[keep])
            layer.bias = None if layer.bias is None else nn.Parameter(layer.bias[keep])
        attention.out.weight = nn.Parameter(attention.out.weight[:, keep])
        close(net(x), silenced)
    assert attention.heads == 2
    assert "heads=2, head_width=4" in repr(attention)


def test_transformer_weights_are_glorots_and_mixer_weights_lecuns() -> None:
    vit = build("vit:dim=64,depth=2,mlp=96", inputs=(3, 16, 16), outputs=10, seed=0)
    for block in vit.blocks:
        weight = block.mlp.fc1.weight
        assert weight.abs().max() <= math.sqrt(6 / (64 + 96))
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 96)), rel=0.05)
        assert not block.attention.heads.query.bias.any()
    assert vit.tokens.positions.std().item() == pytest.approx(0.02, rel=0.1)
    mixer = build("mixer:dim=64,depth=1", inputs=(3, 16, 16), outputs=10, seed=0)
    for layer, fan_in in (
        (mixer.patch, 48),
        (mixer.blocks[0].tokens.fc1, 16),
        (mixer.blocks[0].channels.fc2, 512),
    ):
        assert layer.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.1)
        assert not layer.bias.any()


def test_dropout_is_at_every_place_of_the_paper_and_only_in_training() -> None:
    net, x = ready("vit:dim=8,depth=1,heads=2,mlp=6,patch=4,dropout=0.5", (1, 8, 8))
    places = [n for n, m in net.named_modules() if isinstance(m, nn.Dropout)]
    inside = ("attention.out_drop", "mlp.drop", "mlp.out_drop")
    assert places == ["drop", *(f"blocks.0.{place}" for place in inside)]
    plain = build("vit:dim=8,depth=1,heads=2,mlp=6,patch=4", inputs=(1, 8, 8), outputs=3).eval()
    plain.load_state_dict(net.state_dict())
    close(net(x), plain(x))
    for place in places:  # what is left then drops attention weights
        net.get_submodule(place).p = 0.0
    assert not torch.equal(net.train()(x), net(x))


@pytest.mark.parametrize(("act", "gain"), [("tanh", 1), ("relu", 2)])
def test_lenet_weights_suit_their_activation(act: str, gain: int) -> None:
    net = build(f"lenet:20,30,40,50,act={act}", inputs=(3, 32, 32), outputs=10, seed=0)
    for layer in (net.conv2, net.conv3, net.fc1):
        spread = layer.weight.std().item() * math.sqrt(layer.weight[0].numel())
        assert spread == pytest.approx(math.sqrt(gain), rel=0.05)
