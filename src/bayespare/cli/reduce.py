"""``reduce`` and ``prune``: a trained network made smaller, without training it anew."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from bayespare.cli.fit import finish, plan_line, threads
from bayespare.cli.folder import check_free, claim, default_name
from bayespare.cli.keys import FitKeys, PosthocKeys, PruneKeys, ReduceKeys
from bayespare.cli.output import Output, logging_to
from bayespare.cli.prepare import Prepared, load_splits, prepare
from bayespare.data import Batches, Dataset, Standardized
from bayespare.errors import BayespareError, did_you_mean
from bayespare.posthoc import PosthocOptions, PruneOptions, ReduceOptions
from bayespare.posthoc import prune as prune_network
from bayespare.posthoc import reduce as reduce_network
from bayespare.result import Result
from bayespare.training.checkpoint import write_json
from bayespare.training.progress import ProgressBar


def reduce(keys: ReduceKeys, output: Output) -> Mapping[str, Any]:
    """Read data, network and weights; reduce; write a run folder like that of ``fit``.

    Raises:
        BayespareError: On bad input; then nothing has been written.
    """
    options = ReduceOptions(**_shared(keys, ReduceOptions))
    return _posthoc(keys, output, "reduce", reduce_network, options, options.rounds)


def prune(keys: PruneKeys, output: Output) -> Mapping[str, Any]:
    """Read data, network and weights; prune; write a run folder like that of ``fit``.

    Raises:
        BayespareError: On bad input; then nothing has been written.
    """
    options = PruneOptions(**_shared(keys, PruneOptions))
    removals = options.rounds * len(options.shares)
    return _posthoc(keys, output, "prune", prune_network, options, removals)


def _shared(keys: PosthocKeys, options: type[PosthocOptions]) -> dict[str, Any]:
    same = options.__dataclass_fields__.keys() & type(keys).model_fields.keys()
    return {key: getattr(keys, key) for key in same}


def _posthoc(
    keys: PosthocKeys,
    output: Output,
    verb: str,
    make_smaller: Callable[..., Result],
    options: PosthocOptions,
    rounds: int,
) -> Mapping[str, Any]:
    for name in ("data", "net", "weights"):
        if getattr(keys, name) is None:
            raise BayespareError(
                f"{verb}: {name}= is missing, as in: bayespare {verb} data=FILE net=lenet5 "
                "weights=model.safetensors"
            )
    with threads(keys.threads):
        shared = FitKeys.model_fields.keys() & type(keys).model_fields.keys()
        shared -= {"unit", "finetune", "lr", "prior", "scope"}
        # A share of weights is no limit on shapes, and one to rank is no limit at all.
        shared -= {"sparsity"} if keys.unit == "weight" or verb == "prune" else set()
        given = {key: getattr(keys, key) for key in shared}
        if keys.standardize == "auto":
            given["standardize"] = "both"
        prepared = _with_weights(FitKeys(**given), keys)
        fits = _as_trained(prepared) if keys.standardize == "auto" else keys.standardize
        if fits != given["standardize"]:
            prepared = _with_weights(FitKeys(**given | {"standardize": fits}), keys)
        folder = _new_folder(keys, prepared, verb)
        config = {**prepared.config(), "method": verb, "weights": keys.weights}
        write_json(folder / "config.json", config)
        with logging_to(folder / "log.txt", output, epochs=not sys.stderr.isatty()):
            output.say(f"{prepared.splits.name}: {prepared.splits.note}")
            if fits != "both":
                output.say(f"the weights fit standardize={fits}")
            output.say(plan_line(prepared.plan))
            output.say(f"run folder: {folder}")
            splits = prepared.splits
            with ProgressBar(rounds, show=True) as progress:
                result = make_smaller(
                    prepared.model,
                    splits.train,
                    valid=splits.valid,
                    test=splits.test,
                    report=progress,
                    config=config,
                    **_shared(keys, type(options)),
                )
            return finish(result, folder, output)


def _with_weights(keys: FitKeys, given: PosthocKeys) -> Prepared:
    """Everything read and checked, the network with its weights."""
    prepared = prepare(keys)
    assert given.weights is not None  # checked before
    load_weights(prepared.model, Path(given.weights))
    return prepared


def _as_trained(prepared: Prepared) -> str:
    """What was standardised when the weights were trained: what they are most right about.

    Weights of other software come without a word on that, and under the wrong inputs a good network
    looks like a poor one.
    """
    numbers = prepared.splits.train.task == "regression"
    forms = get_args(Standardized) if numbers else ("both", "neither")
    losses: dict[str, float] = {}
    prepared.model.eval()
    for form in forms:
        train = prepared.splits.train
        if form != prepared.keys.standardize:
            keys = prepared.keys.model_copy(update={"standardize": form})
            try:
                train = load_splits(keys).train
            except BayespareError:  # too large as stored: nothing was trained on that
                continue
        rows = train.subset(torch.arange(min(len(train), 10_000)))
        losses[form] = _misfit(prepared.model, rows)
    return min(losses, key=lambda form: losses[form])


@torch.no_grad()
def _misfit(model: nn.Module, rows: Dataset) -> float:
    """NLL of classes, or squared error as a share of the variance; what is no number is worst."""
    said = torch.cat([model(x).float() for x, *_ in Batches(rows, 1024, shuffle=False)])
    if rows.task == "regression":
        loss = (said.view(-1) - rows.y).square().mean() / rows.y.var(correction=0)
    else:
        loss = functional.cross_entropy(said, rows.y)
    return float(loss.nan_to_num(nan=torch.inf))


def _new_folder(keys: PosthocKeys, prepared: Prepared, verb: str) -> Path:
    project = Path(keys.project)
    if keys.name is not None:
        check_free(project / keys.name, exist_ok=keys.exist_ok)
    return claim(project, keys.name, default_name(prepared.splits.name, keys.net or "", verb))


def load_weights(model: nn.Module, path: Path) -> None:
    """Put a state dict into a network, in place.

    Args:
        model: Of the same architecture.
        path: ``.safetensors``, or a file of ``torch.save``, read as tensors alone.

    Raises:
        BayespareError: If it cannot be read, or does not fit; the message names the parameter.
    """
    if not path.is_file():
        raise BayespareError(f"weights={path}: there is no such file")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a damaged file raises half a dozen kinds
        why = " ".join(str(error).split())[:200]
        raise BayespareError(f"weights={path}: is no state dict that can be read ({why})") from None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BayespareError(f"weights={path}: holds no state dict (names with tensors)")
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            raise BayespareError(
                f"weights={path}: has no {name!r}, which the network needs"
                f"{did_you_mean(name, state)}"
            )
        if state[name].shape != tensor.shape:
            raise BayespareError(
                f"weights={path}: {name!r} has shape {tuple(state[name].shape)}, the network's "
                f"{tuple(tensor.shape)}"
            )
    extra = [name for name in state if name not in wanted]
    if extra:
        raise BayespareError(f"weights={path}: {extra[0]!r} is no parameter of the network")
    model.load_state_dict(dict(state))
