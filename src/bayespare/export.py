"""Networks for other runtimes: an ONNX or ``torch.export`` file, proven before it is kept."""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bayespare.errors import BayespareError, did_you_mean
from bayespare.structure.compare import tensors_in

Format = Literal["onnx", "torch"]

SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "torch": ".pt2"}

TOLERANCE = 1e-5
"""Largest difference to the model, relative to its largest output."""

ROUNDING, MOST_ROUNDING = 4.0, 1e-3
"""A larger difference is rounding if the file is at most this many times as far as the model from
the model in float64, and never more than the second number."""

ROWS = (1, 7)
"""Batch sizes that the file is tried with; the model is traced with another one."""

Runner = Callable[[tuple[Tensor, ...]], list[Tensor]]
"""Takes the arguments of the model, returns its outputs in a row."""

ONE_FILE = 2**31 - 2**20
"""Bytes of weights that fit into a single ONNX file, which is a protocol buffer."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        format: ``onnx`` or ``torch``.
        bytes: Its size.
        difference: Largest difference to the model, relative to its largest output.
        runtime: What ran the file for that.
    """

    path: Path
    format: Format
    bytes: int
    difference: float
    runtime: str


def export(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    path: str | Path,
    format: Format = "onnx",
    *,
    exist_ok: bool = False,
    notes: Mapping[str, str] | None = None,
) -> Exported:
    """Write a network in evaluation mode to a file that needs neither its code nor this library.

    Batches of every size are accepted. The file is run on batches of 1 and 7 random rows and takes
    its name only if it says what the model says, to 1e-5 of the largest output (where the model's
    own rounding is larger: if it is about as near to the model in float64). It holds the graph and
    the weights: no pickle, nothing of ``example``, no paths of this machine.

    Args:
        model: Any network ``torch.export`` can trace; it is not changed.
        example: A batch the model accepts, or a tuple of its arguments; the first dimension of each
            is the batch. Integers are taken as they are, other inputs drawn at random.
        path: The file.
        format: ``onnx`` needs the extra ``bayespare[export]`` and is checked with ONNX Runtime, or
            with the evaluator of ``onnx`` where that is not installed. ``torch`` writes a ``.pt2``
            archive for ``torch.export.load``.
        exist_ok: Replace the file if it exists.
        notes: Texts kept in the file: ONNX metadata, or the archive's extra files.

    Raises:
        BayespareError: If the format is unknown, a package is missing, the file exists or cannot be
            written, the model cannot be traced or not for every batch size, or the file says
            something else than the model. Then nothing is written.
    """
    path, examples = Path(path), example if isinstance(example, tuple) else (example,)
    if format not in SUFFIXES:
        raise BayespareError(f"format={format}: unknown{did_you_mean(format, get_args(Format))}")
    check_free(path, exist_ok=exist_ok)
    if format == "onnx":
        _need_onnx()
    if not examples or any(x.ndim == 0 or len(x) == 0 for x in examples):
        raise BayespareError("export: the example needs a first dimension, the batch, of 1 or more")
    still = deepcopy(model).cpu().eval()
    probes = [_rows(examples, rows) for rows in ROWS]
    wanted = [_run_model(still, probe) for probe in probes]
    program = _traced(still, _rows(examples, 2))
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            # Under the name it will have: an archive writes its own name into itself.
            draft = Path(folder) / f"{path.stem}{SUFFIXES[format]}"
            if format == "onnx":
                _write_onnx(program, draft, notes or {})
                run, runtime = _onnx_runner(draft)
            else:
                _write_torch(program, draft, notes or {})
                run, runtime = _torch_runner(draft)
            got = [run(probe) for probe in probes]
            difference = _difference(wanted, got)
            if difference > TOLERANCE and not _only_rounding(model, probes, wanted, got):
                raise BayespareError(
                    f"{path}: {runtime} differs from the model by {difference:.1e} of its "
                    f"largest output, more than {TOLERANCE:.0e}; nothing was written"
                )
            size = draft.stat().st_size
            draft.replace(path)
    except OSError as error:
        raise BayespareError(f"{path}: cannot be written ({error.strerror or error})") from error
    return Exported(path, format, size, difference, runtime)


def check_free(path: Path, *, exist_ok: bool) -> None:
    """Make sure that a file may be written; nothing is changed.

    Raises:
        BayespareError: If it exists and may not be replaced, or there is no folder for it.
    """
    if path.is_dir():
        raise BayespareError(f"{path}: is a folder; give the name of a file")
    if path.exists() and not exist_ok:
        raise BayespareError(f"{path}: exists; choose another file, or give exist_ok=true")
    if not path.parent.is_dir():
        raise BayespareError(f"{path}: there is no folder {path.parent}")


def _need_onnx() -> None:
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise BayespareError(
                f"format=onnx needs {package}, which is not installed: "
                "pip install 'bayespare[export]' (or write format=torch)"
            ) from error


def _rows(examples: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    """Inputs like the examples with another number of rows, the same on every call."""
    generator = torch.Generator().manual_seed(rows)
    made = []
    for x in examples:
        if x.is_floating_point():
            made.append(torch.randn(rows, *x.shape[1:], generator=generator).to(x.dtype))
        else:
            made.append(x.cpu()[torch.arange(rows) % len(x)])
    return tuple(made)


@torch.no_grad()
def _run_model(model: nn.Module, probe: tuple[Tensor, ...]) -> list[Tensor]:
    try:
        outputs = list(tensors_in(model(*probe)))
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in probe)
        raise BayespareError(
            f"export: the model does not run on inputs of shape {shapes} ({_reason(error)})"
        ) from error
    if not outputs or not any(bool(y.isfinite().any()) for y in outputs):
        raise BayespareError("export: the model gives no finite output for random inputs")
    return outputs


def _traced(model: nn.Module, probe: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    try:
        with _quiet():
            program = torch.export.export(
                model, probe, dynamic_shapes=tuple({0: batch} for _ in probe)
            )
    except Exception as error:
        raise BayespareError(
            "export: torch.export cannot trace the model for every batch size "
            f"({_reason(error)}); sizes in a forward must come from x.shape, and no branch may "
            "depend on the data"
        ) from error
    # Where the code lies and what it was traced with are nobody's business.
    program.example_inputs = None
    for graph in (m.graph for m in program.graph_module.modules() if hasattr(m, "graph")):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)
    return program


def _write_onnx(
    program: torch.export.ExportedProgram, draft: Path, notes: Mapping[str, str]
) -> None:
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if size > ONE_FILE:
        raise BayespareError(
            f"export: {size:,} bytes of weights do not fit into one ONNX file; write format=torch"
        )
    inputs = len(program.graph_signature.user_inputs)
    outputs = len(program.graph_signature.user_outputs)
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=_names("input", inputs),
                output_names=_names("output", outputs),
                dynamic_shapes=tuple({0: "batch"} for _ in range(inputs)),
            )
            if made is None:
                raise RuntimeError("torch.onnx.export returned nothing")
            clear = importlib.import_module("onnx_ir.passes.common").ClearMetadataAndDocStringPass
            clear()(made.model)  # it names files of this machine
            made.model.metadata_props.update(notes)
            made.save(draft, external_data=False)
            importlib.import_module("onnx.checker").check_model(draft)
    except OSError:
        raise
    except Exception as error:
        raise BayespareError(
            f"export: torch.onnx cannot write the model ({_reason(error)})"
        ) from error


def _names(word: str, count: int) -> list[str]:
    return [word] if count == 1 else [f"{word}{i}" for i in range(1, count + 1)]


def _onnx_runner(draft: Path) -> tuple[Runner, str]:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        runtime = None
    try:
        if runtime is None:
            onnx = importlib.import_module("onnx")
            session = importlib.import_module("onnx.reference").ReferenceEvaluator(str(draft))
            names, what = session.input_names, f"onnx {onnx.__version__} (reference evaluator)"
        else:
            options = runtime.SessionOptions()
            options.log_severity_level = 4  # what goes wrong is raised, too
            cpu = ["CPUExecutionProvider"]
            session = runtime.InferenceSession(str(draft), options, providers=cpu)
            names = [x.name for x in session.get_inputs()]
            what = f"ONNX Runtime {runtime.__version__}"
    except Exception as error:
        raise BayespareError(f"export: the ONNX file does not load ({_reason(error)})") from error

    def run(probe: tuple[Tensor, ...]) -> list[Tensor]:
        feed = {name: x.numpy() for name, x in zip(names, probe, strict=True)}
        try:
            return [torch.as_tensor(y) for y in session.run(None, feed)]
        except Exception as error:
            raise BayespareError(f"export: {what} fails ({_reason(error)})") from error

    return run, what


def _write_torch(
    program: torch.export.ExportedProgram, draft: Path, notes: Mapping[str, str]
) -> None:
    try:
        with _quiet():
            torch.export.save(program, draft, extra_files=dict(notes))
    except RuntimeError as error:  # the archive's writer knows no OSError
        raise BayespareError(f"export: the archive cannot be written ({_reason(error)})") from error


def _torch_runner(draft: Path) -> tuple[Runner, str]:
    with _quiet():
        module = torch.export.load(draft).module()

    @torch.no_grad()
    def run(probe: tuple[Tensor, ...]) -> list[Tensor]:
        return list(tensors_in(module(*probe)))

    return run, f"PyTorch {torch.__version__}"


def _only_rounding(
    model: nn.Module,
    probes: list[tuple[Tensor, ...]],
    expected: list[list[Tensor]],
    got: list[list[Tensor]],
) -> bool:
    """Whether the file is about as near to the model in float64 as the model itself."""
    precise = deepcopy(model).cpu().eval().double()
    try:
        exact = [_run_model(precise, tuple(_doubled(probe))) for probe in probes]
    except BayespareError:  # a model that insists on its own precision
        return False
    own, others = (
        _difference(exact, [_doubled(outputs) for outputs in said]) for said in (expected, got)
    )
    return others <= min(max(TOLERANCE, ROUNDING * own), MOST_ROUNDING)


def _doubled(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in tensors]


def _difference(expected: list[list[Tensor]], got: list[list[Tensor]]) -> float:
    """Largest difference of any output, relative to its largest value in any of the batches.

    A single row may have outputs near zero that are what is left of large sums.
    """
    kinds = [[[(x.shape, x.dtype) for x in batch] for batch in said] for said in (expected, got)]
    if kinds[0] != kinds[1]:
        return float("inf")
    worst = 0.0
    for xs, ys in zip(zip(*expected, strict=True), zip(*got, strict=True), strict=True):
        x, y = (torch.cat([part.double().flatten() for part in parts]) for parts in (xs, ys))
        different = (x != y) & ~(x.isnan() & y.isnan())
        if bool(different.any()):
            gap = (x - y)[different].abs().nan_to_num(nan=float("inf")).max()
            scale = x[x.isfinite()].abs().max() if bool(x.isfinite().any()) else torch.ones(())
            worst = max(worst, float(gap / scale.clamp_min(torch.finfo(torch.float32).tiny)))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notices about their own insides from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """The first line of what lies at the root of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
