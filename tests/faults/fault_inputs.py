"""Damaged and hostile files: what they are made from, how they are damaged, and what may happen.

A file may be read, or be refused by an error in one line. Nothing else: no other exception, no
10 seconds, no 1.5 GB, and nothing written beside the folder it is in.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import random
import re
import resource
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fault_runs import COMMON, make_data
from safetensors.torch import save_file

import bayespare
from bayespare import data, nets
from bayespare.cli.keys import FitKeys
from bayespare.cli.main import main
from bayespare.cli.parse import read_keys
from bayespare.cli.weights import load_weights
from bayespare.errors import BayespareError
from bayespare.training.checkpoint import Checkpoint

SECONDS = 10
MEMORY = 3 * 2**29

NUMBERS = ("-1", "0", "3", "1000000000000", "1e308", "9" * 40, "NaN", "null", "true", "0.5")
WORDS = ('"../../outside/x"', '"/etc/passwd"', '""', '"\\u0000\\ud800"', "[]", "{}", "[[1]]")
NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
WORD = re.compile(rb'"[^"\\]*"|true|false|null')


# -------------------------------------------------------------------- damaging bytes


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Some bytes flipped, cut, doubled or zeroed; or numbers and words replaced by worse ones."""
    for _ in range(draw.randint(1, 3)):
        content = draw.choice(WAYS)(content, draw)
    return content


def _flip(content: bytes, draw: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        if found:
            found[draw.randrange(len(found))] = draw.randrange(256)
    return bytes(found)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randint(0, len(content))]


def _double(content: bytes, draw: random.Random) -> bytes:
    first, last = sorted(draw.randint(0, len(content)) for _ in range(2))
    return content[:last] + content[first:]


def _blank(content: bytes, draw: random.Random) -> bytes:
    first = draw.randint(0, len(content))
    last = min(len(content), first + draw.choice((1, 2, 4, 8, 64)))
    return content[:first] + draw.choice((b"\0", b"\xff")) * (last - first) + content[last:]


def _insert(content: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(content))
    return content[:at] + draw.randbytes(draw.randint(1, 8)) + content[at:]


def _replace(pattern: re.Pattern[bytes], worse: tuple[str, ...]) -> Callable[..., bytes]:
    def way(content: bytes, draw: random.Random) -> bytes:
        places = list(pattern.finditer(content[:200_000]))
        if not places:
            return _flip(content, draw)
        place = draw.choice(places)
        return content[: place.start()] + draw.choice(worse).encode() + content[place.end() :]

    return way


_number, _word = _replace(NUMBER, NUMBERS), _replace(WORD, WORDS)
WAYS = (_flip, _cut, _double, _blank, _insert, _number, _number, _word, _word)


def damaged_file(content: bytes, suffix: str, draw: random.Random) -> bytes:
    """A file's bytes, damaged inside its container as often as outside.

    Raises:
        Exception: If the container is damaged already.
    """
    if draw.random() < 0.4:
        return damaged(content, draw)
    if suffix == ".gz":
        inner = damaged(gzip.decompress(content), draw)
        return gzip.compress(inner, 1, mtime=0)
    if suffix in (".npz", ".pt"):
        return _rezipped(content, draw)
    if suffix == ".safetensors":
        return _reheaded(content, draw)
    return damaged(content, draw)


def _rezipped(content: bytes, draw: random.Random) -> bytes:
    """One member damaged, its checksum right; it may say that it is longer than it is."""
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(found, "w") as new:
        members = old.infolist()
        chosen = draw.choice(members)
        for member in members:
            inner = old.read(member)
            if member is chosen:
                inner = damaged(inner[:128], draw) + inner[128:]
            new.writestr(member.filename, inner, draw.choice((0, 8)))
    return found.getvalue()


def _reheaded(content: bytes, draw: random.Random) -> bytes:
    """The header of a safetensors file damaged, its length right."""
    (length,) = struct.unpack("<Q", content[:8])
    header = damaged(content[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


# --------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Target:
    """A folder whose files are damaged one at a time, and what reads them."""

    read: Callable[[Path, random.Random], None]
    files: Callable[[Path], list[Path]] = lambda folder: sorted(
        path for path in folder.rglob("*") if path.is_file()
    )


def _command(*words: str) -> None:
    """A command line: 0, or 2 and one line on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*words, "--json"])
    lines = [line for line in err.getvalue().splitlines() if line.startswith("bayespare:")]
    if code not in (0, 2) or (code == 2 and len(lines) != 1) or "Traceback" in err.getvalue():
        raise AssertionError(f"{words}: exit code {code}: {err.getvalue()[-1500:]}")
    if code == 2:
        raise BayespareError(lines[0])


def _load_data(name: str, **options: str) -> Callable[[Path, random.Random], None]:
    def read(folder: Path, draw: random.Random) -> None:
        data.load(str(folder / name) if name else str(folder), **options)

    return read


def _cfg(folder: Path, draw: random.Random) -> None:
    read_keys(FitKeys, [f"cfg={folder / 'keys.yaml'}"], "fit")


def _run(folder: Path, draw: random.Random) -> None:
    run = folder / "runs/a"
    verb = draw.choice(("load", "load", "report", "pick", "predict", "eval", "explain", "export"))
    if verb == "load":
        loaded = bayespare.load(run)
        loaded.predict(torch.zeros(2, 10), samples=2)
    elif verb == "pick":
        _command("pick", str(run), draw.choice(("max_params=1e6", "sparsity=0.1", "max_macs=300")))
    elif verb == "predict":
        _command("predict", str(run), f"data={folder / 'd.npz'}", f"out={folder / 'p.csv'}")
    elif verb == "export":
        _command("export", str(run), "format=torch") if draw.random() < 0.1 else None
    else:
        _command(verb, str(run))


def _stopped(folder: Path, draw: random.Random) -> None:
    if draw.random() < 0.7:
        Checkpoint(folder / "runs/a/checkpoint").load()
    else:
        _command("fit", f"resume={folder / 'runs/a'}")


def _weights(folder: Path, draw: random.Random) -> None:
    model = nets.build("mlp:12", inputs=(10,), outputs=3, seed=0)
    load_weights(model, folder / draw.choice(("w.safetensors", "w.pt")))


def _within(*names: str) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted(
        path for name in names for path in folder.glob(name) if path.is_file()
    )


TARGETS: Mapping[str, Target] = {
    "npz": Target(_load_data("d.npz")),
    "csv": Target(_load_data("d.csv", target="kind")),
    "parquet": Target(_load_data("d.parquet", target="kind")),
    "idx": Target(_load_data("")),
    "idx.gz": Target(_load_data("")),
    "cifar": Target(_load_data("")),
    "cfg": Target(_cfg),
    "weights": Target(_weights),
    "run": Target(_run, _within("runs/a/*.json*", "runs/a/*.safetensors", "runs/a/frontier/*/*")),
    "stopped": Target(_stopped, _within("runs/a/*.json*", "runs/a/checkpoint/*")),
}


def make_samples(base: Path) -> None:
    """A folder with sound files for each target."""
    draw = np.random.default_rng(0)
    for name in TARGETS:
        (base / name).mkdir(parents=True)
    make_data(base / "npz/d.npz")
    columns = {"a": draw.normal(size=60), "b": draw.integers(9, size=60), "kind": ["x", "y"] * 30}
    pq.write_table(pa.table(columns), base / "parquet/d.parquet")
    lines = ["a,b,kind", *(f"{a:.3f},{b},{k}" for a, b, k in zip(*columns.values(), strict=True))]
    (base / "csv/d.csv").write_text("\n".join(lines))
    pixels = draw.integers(256, size=(40, 6, 5), dtype=np.uint8)
    images = struct.pack(">IIII", 0x803, *pixels.shape) + pixels.tobytes()
    labels = struct.pack(">II", 0x801, 40) + bytes([i % 4 for i in range(40)])
    for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
        (base / f"idx/train-{kind}-ubyte").write_bytes(content)
        (base / f"idx.gz/train-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    record = b"".join(bytes([i % 10]) + draw.bytes(3072) for i in range(30))
    (base / "cifar/data_batch_1.bin").write_bytes(record)
    (base / "cifar/batches.meta.txt").write_text("\n".join("abcdefghij"))
    keys = "# keys\ndata: digits\nnet: mlp:8\nepochs: 10\nprior: 0.1\nkeep: a, b\nquick: false\n"
    (base / "cfg/keys.yaml").write_text(keys)
    model = nets.build("mlp:12", inputs=(10,), outputs=3, seed=1)
    save_file(dict(model.state_dict()), base / "weights/w.safetensors")
    torch.save(model.state_dict(), base / "weights/w.pt")
    for name in ("run", "stopped"):
        make_data(base / name / "d.npz")
        words = [f"data={base / name / 'd.npz'}", *COMMON, f"project={base / name / 'runs'}"]
        with _stop_at(5 if name == "stopped" else None):
            _fit(*words, "name=a")


def _fit(*words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(["fit", *words])


@contextlib.contextmanager
def _stop_at(saves: int | None) -> Iterator[None]:
    """Ctrl-C after so many saved states."""
    original, left = Checkpoint.save, saves

    def save(checkpoint: Checkpoint, *state: object) -> None:
        nonlocal left
        original(checkpoint, *state)  # type: ignore[arg-type]
        left = None if left is None else left - 1
        if left == 0:
            raise KeyboardInterrupt

    Checkpoint.save = save  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Checkpoint.save = original  # type: ignore[method-assign]


# ------------------------------------------------------------------------- one trial


def try_one(samples: Path, name: str, draw: random.Random, place: Path) -> str:
    """Damage one file of a target and read it; ``read`` or ``refused``.

    Args:
        samples: Of :func:`make_samples`; not changed.
        name: Of the target.
        draw: Chooses the file and the damage.
        place: An empty folder, which is emptied again.

    Raises:
        Exception: Whatever may not happen.
    """
    path = draw.choice(TARGETS[name].files(samples / name))
    content = damaged_file(path.read_bytes(), path.suffix, draw)
    return try_content(samples, name, path, content, draw, place)


def try_content(
    samples: Path, name: str, path: Path, content: bytes, draw: random.Random, place: Path
) -> str:
    """Read a target with other content in one of its files; ``read`` or ``refused``.

    Args:
        samples: As in :func:`try_one`.
        name: Of the target.
        path: The file, among the samples.
        content: What is read instead.
        draw: Chooses what reads it.
        place: As in :func:`try_one`.

    Raises:
        Exception: Whatever may not happen.
    """
    target = TARGETS[name]
    outside = place / "outside"
    outside.mkdir(parents=True)
    (outside / "x.safetensors").write_bytes(b"precious")
    folder = place / "in"
    shutil.copytree(samples / name, folder)
    (folder / path.relative_to(samples / name)).write_bytes(content)
    try:
        with limited():
            target.read(folder, draw)
        return "read"
    except BayespareError as error:
        if "\n" in str(error):
            raise AssertionError(f"{name}: more than a line: {error}") from error
        return "refused"
    finally:
        left = sorted(
            str(p.relative_to(place)) for p in place.rglob("*") if folder not in p.parents
        )
        shutil.rmtree(place)
        if left != ["in", "outside", "outside/x.safetensors"]:
            raise AssertionError(f"{name}: written outside its folder: {left}")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Ten seconds, and so much more memory than there is now."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no answer after {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    logging.disable(logging.CRITICAL)  # thousands of warnings of fallbacks
    try:
        yield
    except MemoryError as error:
        raise AssertionError("too much memory") from error
    finally:
        logging.disable(logging.NOTSET)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
