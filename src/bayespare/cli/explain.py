"""``explain``: every parameter of a network, and what could be removed with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bayespare import nets
from bayespare.cli.folder import existing_run
from bayespare.cli.keys import ExplainKeys
from bayespare.cli.output import Output
from bayespare.cli.prepare import default_net
from bayespare.cli.runs import load_run, original
from bayespare.cli.tables import columns
from bayespare.data import load
from bayespare.errors import BayespareError
from bayespare.lookups import check_lookups, looks_up, with_ids
from bayespare.methods.wiring import left_whole
from bayespare.structure import Plan, Verdict, trace
from bayespare.structure.explain import dead, table
from bayespare.structure.positions import with_positions

MOST_INPUTS = 2**28


def explain(keys: ExplainKeys, output: Output) -> Mapping[str, Any]:
    """Print what gates each parameter, what it is coupled to, and why it is left alone.

    Raises:
        BayespareError: If it is not clear what to explain, or that cannot be read.
        UnsupportedStructureError: If nothing can be removed.
    """
    model, plan, verdict = _subject(keys)
    output.say(table(plan, model))
    whole = left_whole(model, plan)
    for name, reason in whole.items():
        output.say(f"fit leaves {name!r} whole: {reason}")
    if verdict is not None:
        kept = [[name, f"{k:,} of {n:,}"] for name, (k, n) in verdict.kept.items()]
        output.say()
        output.say(columns([["group", "units kept"], *kept]))
        for name, layers in dead(verdict).items():
            output.say(f"{name} keeps nothing: {', '.join(layers) or 'nobody'} computes a constant")
    groups: list[dict[str, Any]] = [
        {"name": g.name, "unit": g.unit, "size": g.size} for g in plan.groups
    ]
    if verdict is not None:
        groups = [{**g, "kept": verdict.kept[g["name"]][0]} for g in groups]
    found: dict[str, Any] = {"groups": groups, "left_alone": dict(plan.left_alone)}
    found["left_whole"] = whole
    if verdict is not None:
        found["dead"] = dead(verdict)
    return found


def _subject(keys: ExplainKeys) -> tuple[nn.Module, Plan, Verdict | None]:
    """The network, its plan, and the verdict if it is that of a run."""
    if keys.run is not None:
        if keys.data is not None or keys.inputs is not None:
            raise BayespareError("explain: give a run, or data=, or net= with inputs=")
        run = load_run(keys.run, keys.net, "explain")
        return original(existing_run(keys.run, "explain"), keys.net), run.plan, run.verdict
    if keys.data is not None:
        if keys.inputs is not None:
            raise BayespareError("explain: data= says what the inputs are; leave inputs= away")
        train = load(keys.data, **keys.reading).train
        net = keys.net or default_net(train)
        model = nets.build(net, inputs=train.inputs, outputs=train.outputs, seed=0)
        if "standardize" not in keys.model_fields_set and looks_up(model, train.x):
            train = load(keys.data, **keys.reading | {"standardize": "target"}).train
        train = with_ids(model, train)
        check_lookups(model, {keys.data: train.x})
        return model, with_positions(trace(model, train.x[:4], inputs=train.feature_groups)), None
    if keys.net is None or keys.inputs is None:
        raise BayespareError(
            "explain: say what to explain: a run, data=digits, or net=lenet5 inputs=1,28,28"
        )
    if torch.Size(keys.inputs).numel() > MOST_INPUTS:
        raise BayespareError(f"explain: inputs={keys.inputs} are more than {MOST_INPUTS:,} numbers")
    model = nets.build(keys.net, inputs=keys.inputs, outputs=keys.outputs, seed=0)
    example = torch.randn(4, *keys.inputs, generator=torch.Generator().manual_seed(0))
    check_lookups(model, {f"explain: inputs={keys.inputs}": example})
    return model, with_positions(trace(model, example)), None
