"""``export``: a run's network as a file for other runtimes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayespare.cli.folder import existing_run
from bayespare.cli.keys import ExportKeys
from bayespare.cli.output import Output
from bayespare.cli.runs import load_run
from bayespare.export import SUFFIXES, check_free
from bayespare.export import export as write
from bayespare.load import LoadedRun
from bayespare.version import __version__


def export(keys: ExportKeys, output: Output) -> Mapping[str, Any]:
    """Write the posterior's mean as an ONNX or ``torch.export`` file.

    What the network expects and what its outputs mean go into the file, too, as JSON under the
    name ``bayespare``: how raw data become its inputs, its classes, the scale of its target.

    Raises:
        BayespareError: If the file exists, a package is missing, the run cannot be read, or the
            file does not say what the network says.
    """
    folder = existing_run(keys.run, "export")
    path = folder / f"model{SUFFIXES[keys.format]}" if keys.out is None else Path(keys.out)
    check_free(path, exist_ok=keys.exist_ok)
    run = load_run(keys.run, keys.net, "export")
    meaning = _meaning(run)
    written = write(
        run.model,
        run.config.example(2),
        path,
        keys.format,
        exist_ok=keys.exist_ok,
        notes={"bayespare": json.dumps(meaning)},
    )
    output.say(f"{written.path}: {written.bytes:,} bytes")
    output.say(f"{written.runtime} differs from the network by {written.difference:.1e} at most")
    sizes = ", ".join(map(str, ("batch", *run.config.inputs)))
    kind = "int64" if run.config.tokens else "float32"
    output.say(f"input: {kind} ({sizes}), transformed as in training; output: {meaning['output']}")
    return {
        "run": str(run.folder),
        "out": str(written.path),
        "format": written.format,
        "bytes": written.bytes,
        "difference": written.difference,
        "runtime": written.runtime,
        **{key: meaning[key] for key in ("inputs", "output", "classes")},
    }


def _meaning(run: LoadedRun) -> dict[str, Any]:
    """What somebody who has only the file needs to know."""
    config = run.config
    if config.task == "classification":
        output = f"logits of {config.outputs} classes"
    else:
        mean, std = config.target_scale
        output = f"the target, standardised: times {std:.9g} plus {mean:.9g} in its own units"
    return {
        "version": __version__,
        "net": config.net,
        "task": config.task,
        "inputs": list(config.inputs),
        "output": output,
        "classes": list(config.classes),
        "target_scale": list(config.target_scale),
        "transform": config.transform,
    }
