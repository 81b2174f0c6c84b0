"""``reduce`` and ``prune``: a trained network made smaller, without training it anew."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import nn
from torch.nn import functional

from bayespare.bayes.curvature.passes import Structure
from bayespare.cli.fit import finish, plan_line, threads
from bayespare.cli.folder import alone_in, check_free, claim, default_name, existing_run, tidy
from bayespare.cli.keys import FitKeys, PosthocKeys, PruneKeys, ReduceKeys
from bayespare.cli.output import Output, logging_to
from bayespare.cli.prepare import Prepared, load_splits, prepare
from bayespare.cli.resume import GIVEN, check_same_data, continued, said_how_to_go_on, to_go_on
from bayespare.cli.weights import load_weights
from bayespare.data import Batches, Dataset, Standardized
from bayespare.errors import BayespareError
from bayespare.posthoc import PosthocOptions, PruneOptions, ReduceOptions
from bayespare.posthoc import prune as prune_network
from bayespare.posthoc import reduce as reduce_network
from bayespare.posthoc.problem import follow
from bayespare.result import Result
from bayespare.training.checkpoint import write_json
from bayespare.training.history import read_history
from bayespare.training.progress import ProgressBar

P = TypeVar("P", ReduceKeys, PruneKeys)


def reduce(keys: ReduceKeys, output: Output) -> Mapping[str, Any]:
    """Read data, network and weights; reduce; write a run folder like that of ``fit``.

    Raises:
        BayespareError: On bad input; then nothing has been written.
        Interrupted: On Ctrl-C, with how to go on.
    """
    return _posthoc(keys, output, "reduce", reduce_network, ReduceOptions)


def prune(keys: PruneKeys, output: Output) -> Mapping[str, Any]:
    """Read data, network and weights; prune; write a run folder like that of ``fit``.

    Raises:
        BayespareError: On bad input; then nothing has been written.
        Interrupted: On Ctrl-C, with how to go on.
    """
    return _posthoc(keys, output, "prune", prune_network, PruneOptions)


def _posthoc(
    keys: P,
    output: Output,
    verb: str,
    make_smaller: Callable[..., Result],
    kind: type[PosthocOptions],
) -> Mapping[str, Any]:
    resumed = None if keys.resume is None else existing_run(keys.resume, verb)
    if resumed is not None:
        tidy(resumed)
        keys = continued(keys, resumed, verb)
    for name in ("data", "net", "weights"):
        if getattr(keys, name) is None:
            raise BayespareError(
                f"{verb}: {name}= is missing, as in: bayespare {verb} data=FILE net=lenet5 "
                "weights=model.safetensors"
            )
    told = kind.__dataclass_fields__.keys() & type(keys).model_fields.keys()
    options = kind(**{key: getattr(keys, key) for key in told})
    with threads(keys.threads):
        prepared = _as_trained(keys, verb)
        if resumed is not None:
            check_same_data(resumed, prepared.splits)
        folder = resumed or _new_folder(keys, prepared, verb)
        with alone_in(folder):
            config = _config(keys, prepared, verb)
            if resumed is None:
                # First of all: without it the folder is no run, and could not be gone on with.
                write_json(folder / "config.json", config)
            log = logging_to(folder / "log.txt", output, epochs=not sys.stderr.isatty())
            with log, said_how_to_go_on(verb, keys.net, folder):
                _say(prepared, keys, options.structure, folder, output)
                splits, done = prepared.splits, read_history(folder / "history.jsonl")
                left = max(1, options.steps - len(done))
                with ProgressBar(left, show=True, unit="steps") as progress:
                    result = make_smaller(
                        prepared.model,
                        splits.train,
                        valid=splits.valid,
                        test=splits.test,
                        folder=folder,
                        report=progress,
                        config=config,
                        **vars(options),
                    )
                return finish(result, folder, output)


def _config(keys: PosthocKeys, prepared: Prepared, verb: str) -> dict[str, Any]:
    """What ``config.json`` notes; its paths are found from any directory."""
    lasting = {"data": prepared.keys.data, "weights": str(Path(keys.weights or "").resolve())}
    return {
        **prepared.config(),
        "method": verb,
        "weights": keys.weights,
        GIVEN: to_go_on(keys.model_copy(update=lasting)),
    }


def _say(
    prepared: Prepared, keys: PosthocKeys, structure: Structure, folder: Path, output: Output
) -> None:
    output.say(f"{prepared.splits.name}: {prepared.splits.note}")
    if keys.standardize == "auto" and prepared.keys.standardize != "both":
        output.say(f"the weights fit standardize={prepared.keys.standardize}")
    output.say(plan_line(prepared.plan))
    needs, _ = follow(copy.deepcopy(prepared.model), prepared.splits.train.x[:4], structure)
    output.say(f"curvature takes {needs}")
    output.say(f"run folder: {folder}")


def _as_trained(keys: PosthocKeys, verb: str) -> Prepared:
    """Everything read and checked, the inputs prepared as the weights were trained on them."""
    shared = FitKeys.model_fields.keys() & type(keys).model_fields.keys()
    shared -= {"unit", "finetune", "lr", "prior", "scope", "max_memory_gb", "resume"}
    # A share of weights is no limit on shapes, and one to rank is no limit at all.
    shared -= {"sparsity"} if keys.unit == "weight" or verb == "prune" else set()
    given = {key: getattr(keys, key) for key in shared}
    if keys.standardize != "auto":
        return _with_weights(FitKeys(**given), keys)
    given.pop("standardize")
    prepared = _with_weights(FitKeys(**given), keys)
    if prepared.keys.standardize != "both":  # token ids
        return prepared
    fits = _form_that_fits(prepared)
    if fits == "both":
        return prepared
    return _with_weights(FitKeys(**given | {"standardize": fits}), keys)


def _with_weights(keys: FitKeys, given: PosthocKeys) -> Prepared:
    """Everything read and checked, the network with its weights."""
    prepared = prepare(keys)
    assert given.weights is not None  # checked before
    load_weights(prepared.model, Path(given.weights))
    return prepared


def _form_that_fits(prepared: Prepared) -> str:
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
