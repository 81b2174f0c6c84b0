"""The functions through which parameters act, and what each use contributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bayespare.bayes.curvature.parts import Bias, Broadcast, Convolution, Dense, Lookup
from bayespare.bayes.curvature.patches import Window
from bayespare.bayes.curvature.tape import Tape, rule


@rule(functional.linear)
def linear(tape: Tape, func: Any, input: Tensor, weight: Tensor, bias: Any = None) -> Any:
    """``x W' + b``."""
    if tape.watched(input):
        return tape.unfollowed(func, "as the input", input, weight, bias)
    output = func(input, tape.plain(weight), tape.plain(bias))
    parts = [
        Dense(tape.view(weight), input) if tape.watched(weight) else None,
        Bias(tape.view(bias)) if tape.watched(bias) else None,
    ]
    return tape.visit(output, parts, output.ndim - 1)


@rule(torch.addmm, Tensor.addmm)
def addmm(tape: Tape, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor, **scales: Any) -> Any:
    """``b + x W``, as in GPT-2's layers, whose weights are stored as (inputs, outputs)."""
    if tape.watched(mat1) or any(scale != 1 for scale in scales.values()):
        return tape.unfollowed(func, "scaled or from the left", input, mat1, mat2, **scales)
    if tape.watched(input) and input.ndim != 1:
        return tape.unfollowed(func, "as a matrix that is added", input, mat1, mat2)
    output = func(tape.plain(input), mat1, tape.plain(mat2))
    parts = [
        Dense(tape.view(mat2.t()), mat1) if tape.watched(mat2) else None,
        Bias(tape.view(input)) if tape.watched(input) else None,
    ]
    return tape.visit(output, parts, 1)


@rule(torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
def matmul(tape: Tape, func: Any, input: Tensor, other: Tensor) -> Any:
    """``x W``."""
    if tape.watched(input) or other.ndim != 2 or input.ndim < 2:
        return tape.unfollowed(func, "not as the matrix on the right", input, other)
    output = func(input, tape.plain(other))
    return tape.visit(output, [Dense(tape.view(other.t()), input)], output.ndim - 1)


def _numbers(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _bias(tape: Tape, bias: Any, groups: int) -> Bias | None:
    return Bias(tape.view(bias), 1, groups) if tape.watched(bias) else None


@rule(torch.conv1d, torch.conv2d, torch.conv3d)
def convolution(
    tape: Tape,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """A convolution, in groups or not."""
    rest = (stride, padding, dilation, groups)
    dims = weight.ndim - 2
    if tape.watched(input) or input.ndim != weight.ndim:
        return tape.unfollowed(func, "without a batch of inputs", input, weight, bias, *rest)
    output = func(input, tape.plain(weight), tape.plain(bias), *rest)
    spread = _numbers(dilation, dims)
    signal = input
    if padding == "same":
        around = [step * (size - 1) for step, size in zip(spread, weight.shape[2:], strict=True)]
        sides = [side for reach in reversed(around) for side in (reach // 2, reach - reach // 2)]
        signal, padding = functional.pad(input, sides), 0
    elif padding == "valid":
        padding = 0
    window = Window(_numbers(stride, dims), _numbers(padding, dims), spread, groups)
    part = Convolution(tape.view(weight), signal, window) if tape.watched(weight) else None
    return tape.visit(output, [part, _bias(tape, bias, groups)], 1)


@rule(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def transposed_convolution(
    tape: Tape,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """A transposed convolution: the gradient of a convolution with respect to its input."""
    rest = (stride, padding, output_padding, groups, dilation)
    dims = weight.ndim - 2
    if tape.watched(input) or input.ndim != weight.ndim:
        return tape.unfollowed(func, "without a batch of inputs", input, weight, bias, *rest)
    output = func(input, tape.plain(weight), tape.plain(bias), *rest)
    numbers = [_numbers(value, dims) for value in (stride, padding, dilation)]
    part = None
    if tape.watched(weight):
        window = Window(numbers[0], numbers[1], numbers[2], groups)
        part = Convolution(tape.view(weight), input, window, transposed=True)
    return tape.visit(output, [part, _bias(tape, bias, 1)], 1)


@rule(functional.embedding)
def embedding(
    tape: Tape,
    func: Any,
    input: Tensor,
    weight: Tensor,
    padding_idx: Any = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Rows of a table; positions that all examples share are looked up for each example."""
    given = dict(zip(("max_norm", "norm_type", "scale_grad_by_freq", "sparse"), rest, strict=False))
    given |= options
    if given.get("max_norm") is not None or given.get("scale_grad_by_freq"):
        why = "with max_norm or scale_grad_by_freq"
        return tape.unfollowed(func, why, input, weight, padding_idx, *rest, **options)
    if tape.shares(input):
        one = input.unsqueeze(0) if input.ndim == 1 else input
        input = one.expand(tape.examples, *one.shape[1:])
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    output = func(input, tape.plain(weight), padding_idx)
    return tape.visit(output, [Lookup(tape.view(weight), input, padding)], input.ndim)


def _affine(
    tape: Tape, output: Tensor, normal: Tensor, weight: Any, bias: Any, shape: Sequence[int]
) -> Any:
    """The affine part of a normalisation, whose parameters broadcast as ``shape``."""
    parts = [
        Broadcast(tape.view(weight.view(shape)), normal) if tape.watched(weight) else None,
        Broadcast(tape.view(bias.view(shape))) if tape.watched(bias) else None,
    ]
    return tape.visit(output, parts, output.ndim)


@rule(functional.layer_norm)
def layer_norm(
    tape: Tape,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """Layer normalisation."""
    output = func(input, normalized_shape, tape.plain(weight), tape.plain(bias), eps)
    normal = func(input.detach(), normalized_shape, None, None, eps)
    return _affine(tape, output, normal, weight, bias, tuple(normalized_shape))


@rule(functional.rms_norm)
def rms_norm(
    tape: Tape,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    eps: float | None = None,
) -> Any:
    """Root-mean-square normalisation."""
    output = func(input, normalized_shape, tape.plain(weight), eps)
    normal = func(input.detach(), normalized_shape, None, eps)
    return _affine(tape, output, normal, weight, None, tuple(normalized_shape))


@rule(functional.group_norm)
def group_norm(
    tape: Tape,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """Group normalisation."""
    output = func(input, num_groups, tape.plain(weight), tape.plain(bias), eps)
    normal = func(input.detach(), num_groups, None, None, eps)
    return _affine(tape, output, normal, weight, bias, (-1, *(1,) * (input.ndim - 2)))


@rule(functional.instance_norm)
def instance_norm(
    tape: Tape,
    func: Any,
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Instance normalisation, by each example's own statistics or by running ones."""
    rest = (use_input_stats, momentum, eps)
    affine = (tape.plain(weight), tape.plain(bias))
    output = func(input, running_mean, running_var, *affine, *rest)
    # Running statistics are not to be moved twice.
    fixed = (None, None) if use_input_stats else (running_mean, running_var)
    normal = func(input.detach(), *fixed, None, None, *rest)
    return _affine(tape, output, normal, weight, bias, (-1, *(1,) * (input.ndim - 2)))


@rule(functional.batch_norm)
def batch_norm(
    tape: Tape,
    func: Any,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Batch normalisation by its running statistics."""
    fixed = (running_mean, running_var)
    if training:
        why = "which mixes the examples of a batch: give it running statistics"
        rest = (training, momentum, eps)
        return tape.unfollowed(func, why, input, *fixed, weight, bias, *rest)
    output = func(input, *fixed, tape.plain(weight), tape.plain(bias), False, momentum, eps)
    normal = func(input.detach(), *fixed, None, None, False, momentum, eps)
    return _affine(tape, output, normal, weight, bias, (-1, *(1,) * (input.ndim - 2)))


@rule(torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)
def add(tape: Tape, func: Any, input: Any, other: Any, **scale: Any) -> Any:
    """A parameter added to an activation."""
    return _elementwise(tape, func, input, other, (None, None), scale)


@rule(torch.sub, Tensor.sub, Tensor.sub_, Tensor.__sub__, Tensor.__isub__)
def subtract(tape: Tape, func: Any, input: Any, other: Any, **scale: Any) -> Any:
    """A parameter subtracted from an activation, or the other way round."""
    return _elementwise(tape, func, input, other, (None, -1.0), scale)


@rule(torch.mul, Tensor.mul, torch.multiply, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
def multiply(tape: Tape, func: Any, input: Any, other: Any) -> Any:
    """A parameter times an activation."""
    return _elementwise(tape, func, input, other, (other, input), {})


def _elementwise(
    tape: Tape, func: Any, input: Any, other: Any, factors: tuple[Any, Any], scale: dict[str, Any]
) -> Any:
    first = tape.watched(input)
    activation = other if first else input
    if scale or first == tape.watched(other) or not isinstance(activation, Tensor):
        return tape.unfollowed(func, "not with an activation", input, other, **scale)
    output = func(tape.plain(input) if first else input, other if first else tape.plain(other))
    factor = factors[0] if first else factors[1]
    if isinstance(factor, Tensor):
        factor = factor.detach()
    part = Broadcast(tape.view(input if first else other), factor)
    return tape.visit(output, [part], output.ndim)


@rule(torch.prelu, functional.prelu)
def prelu(tape: Tape, func: Any, input: Tensor, weight: Tensor) -> Any:
    """A learned slope for negative inputs, one or one a channel."""
    output = func(input, tape.plain(weight))
    shape = (-1, *(1,) * (input.ndim - 2)) if input.ndim > 1 else (-1,)
    part = Broadcast(tape.view(weight.view(shape)), input.detach().clamp_max(0))
    return tape.visit(output, [part], output.ndim)


@rule(torch.cat, torch.concat)
def join(tape: Tape, func: Any, tensors: Sequence[Tensor], dim: int = 0, **options: Any) -> Any:
    """A parameter beside activations, as a class token before the patches of an image."""
    if options or all(tape.watched(tensor) for tensor in tensors):
        return tape.unfollowed(func, "not beside an activation", tensors, dim, **options)
    output = func([tape.plain(t) if tape.watched(t) else t for t in tensors], dim)
    parts, start = [], 0
    for tensor in tensors:
        if tape.watched(tensor):
            parts.append(Broadcast(tape.view(tensor), None, (dim, start, tensor.shape[dim])))
        start += tensor.shape[dim]
    return tape.visit(output, parts, output.ndim)


@rule(Tensor.repeat)
def repeat(tape: Tape, func: Any, input: Tensor, *sizes: Any) -> Any:
    """A parameter repeated along dimensions of size one: it is expanded, which is a view."""
    counts = tuple(sizes[0]) if isinstance(sizes[0], (tuple, list)) else sizes
    shape = (1,) * (len(counts) - input.ndim) + tuple(input.shape)
    if any(count != 1 != size for count, size in zip(counts, shape, strict=True)):
        return tape.unfollowed(func, "copied along a dimension it has", input, *sizes)
    return input.expand([count * size for count, size in zip(counts, shape, strict=True)])


@rule(functional.multi_head_attention_forward)
def attention(
    tape: Tape, func: Any, query: Any, key: Any, value: Any, *args: Any, **kw: Any
) -> Any:
    """Attention with raw weights: its four projections are run where they can be seen."""
    names = [
        "embed_dim_to_check",
        "num_heads",
        "in_proj_weight",
        "in_proj_bias",
        "bias_k",
        "bias_v",
        "add_zero_attn",
        "dropout_p",
        "out_proj_weight",
        "out_proj_bias",
    ]
    given = dict(zip(names, args, strict=False)) | kw
    extra = [given["bias_k"], given["bias_v"], given.get("static_k"), given.get("static_v")]
    if any(item is not None for item in extra):
        why = "with add_bias_kv or static keys"
        return tape.unfollowed(func, why, query, key, value, *args, **kw)
    if given.get("use_separate_proj_weight"):
        weights = [given[f"{name}_proj_weight"] for name in "qkv"]
    else:
        weights = list(given["in_proj_weight"].chunk(3))
    packed, out_bias = given["in_proj_bias"], given["out_proj_bias"]
    biases = (None,) * 3 if packed is None else packed.chunk(3)
    with tape:
        projected = [
            functional.linear(x, weight, bias)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
    # The stock function still does the rest; multiplying by one is exact.
    width = projected[0].shape[-1]
    one = torch.eye(width, dtype=query.dtype, device=query.device)
    given |= {f"{name}_proj_weight": one for name in "qkv"}
    given |= dict.fromkeys(("in_proj_weight", "in_proj_bias", "out_proj_bias"))
    out_weight = given["out_proj_weight"]
    given |= {"use_separate_proj_weight": True, "out_proj_weight": one}
    mixed, attended = func(*projected, **given)
    with tape:
        return functional.linear(mixed, out_weight, out_bias), attended
