"""The checkpoint folder: one valid state at every moment, and nothing read that was not written."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bayespare.training.checkpoint as module
from bayespare.errors import BayespareError
from bayespare.training.checkpoint import (
    Checkpoint,
    WriteError,
    digest,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"run": {"x": torch.full((3,), value)}, "teacher": {"logits": torch.ones(2, 2)}}


def loaded(folder: Path) -> tuple[float, dict[str, object]]:
    tensors, meta = Checkpoint(folder).load()
    return tensors["run"]["x"][0].item(), meta


class Killed(Exception):
    """Stands for a process that ends."""


# ------------------------------------------------------------------ round trips


def test_a_state_comes_back_bit_for_bit(tmp_path):
    tensors = {
        "float": torch.randn(3, 4),
        "double": torch.randn(2, dtype=torch.float64),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "transposed": torch.randn(3, 2).T,
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(0.1),
        "empty": torch.zeros(0),
    }
    meta = {"epoch": 3, "tempering": 0.1 + 0.2, "none": None, "list": [1, {"a": "ü"}]}
    checkpoint = Checkpoint(tmp_path / "new" / "folder")
    assert not checkpoint.exists()
    checkpoint.save({"all": tensors}, meta)
    got, got_meta = Checkpoint(checkpoint.folder).load()
    assert got_meta == meta
    for name, tensor in tensors.items():
        assert got["all"][name].dtype == tensor.dtype
        assert torch.equal(got["all"][name], tensor)


def test_an_empty_part_is_taken_over_from_the_disk(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(state(1.0), {})
    kept = next(tmp_path.glob("teacher-*")).name
    for value in (2.0, 3.0):
        checkpoint.save({"run": {"x": torch.full((3,), value)}, "teacher": {}}, {})
    tensors, _ = checkpoint.load()
    assert torch.equal(tensors["teacher"]["logits"], torch.ones(2, 2))
    assert sorted(p.name for p in tmp_path.glob("teacher-*")) == [kept]


def test_files_of_earlier_states_go(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    for value in range(5):
        checkpoint.save(state(value), {"epoch": value})
    assert loaded(tmp_path) == (4.0, {"epoch": 4})
    # Two states of two tensor files each.
    assert len(list(tmp_path.iterdir())) == 6


def test_a_part_that_is_no_longer_given_goes(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(state(1.0), {})
    for _ in range(2):
        checkpoint.save({"run": {"x": torch.zeros(3)}}, {})
    assert set(checkpoint.load()[0]) == {"run"}
    assert not list(tmp_path.glob("teacher-*"))


# -------------------------------------------------------------------- atomicity


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("writes", range(5))
def test_a_kill_while_saving_leaves_the_state_before(tmp_path, monkeypatch, writes, reopened):
    """At any of its writes, by a process that saved before or by one that was started since."""
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(state(1.0), {"epoch": 1})
    if reopened:
        checkpoint = Checkpoint(tmp_path)
        checkpoint.load()
    done = 0

    def killing(write):  # type: ignore[no-untyped-def]
        def wrapped(*arguments: object) -> None:
            nonlocal done
            if done == writes:
                raise Killed
            done += 1
            write(*arguments)

        return wrapped

    monkeypatch.setattr(module, "write_tensors", killing(write_tensors))
    monkeypatch.setattr(module, "write_json", killing(write_json))
    if writes < 4:
        with pytest.raises(Killed):
            checkpoint.save(state(2.0), {"epoch": 2})
        assert loaded(tmp_path) == (1.0, {"epoch": 1})
    else:
        checkpoint.save(state(2.0), {"epoch": 2})
        assert loaded(tmp_path) == (2.0, {"epoch": 2})


def test_a_new_checkpoint_in_an_old_folder_does_not_write_over_what_is_valid(tmp_path, monkeypatch):
    """Even one that has not read the state before uses names of its own."""
    Checkpoint(tmp_path).save(state(1.0), {"epoch": 1})

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(module, "write_json", kill)
    with pytest.raises(Killed):
        Checkpoint(tmp_path).save(state(2.0), {"epoch": 2})
    assert loaded(tmp_path) == (1.0, {"epoch": 1})


def test_what_a_kill_left_behind_is_ignored_and_goes(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(state(1.0), {"epoch": 1})
    (tmp_path / ".run-000009.safetensors.part").write_bytes(b"half a fi")
    (tmp_path / ".state.json.part").write_text('{"files": {')
    (tmp_path / "run-000008.safetensors").write_bytes(b"never named")
    assert loaded(tmp_path) == (1.0, {"epoch": 1})
    for epoch in range(2, 12):
        checkpoint.save(state(epoch), {"epoch": epoch})
    assert loaded(tmp_path) == (11.0, {"epoch": 11})
    assert not (tmp_path / "run-000008.safetensors").exists()


def test_a_folder_with_leftovers_alone_holds_no_state(tmp_path):
    (tmp_path / ".state.json.part").write_text("{")
    (tmp_path / "run-000001.safetensors").write_bytes(b"")
    assert not Checkpoint(tmp_path).exists()


def test_values_that_json_has_no_word_for_are_refused_before_they_are_written(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(state(1.0), {"epoch": 1})
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(state(2.0), {"loss": float("nan")})
    assert loaded(tmp_path) == (1.0, {"epoch": 1})


# ------------------------------------------------------------- damage and malice


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("what", ["state.json", "run", "teacher"])
def test_a_damaged_newest_state_falls_back_to_the_one_before(tmp_path, what, reopened, caplog):
    """And saving goes on from there."""
    checkpoint = Checkpoint(tmp_path)
    for value in (1.0, 2.0, 3.0):
        checkpoint.save(state(value), {"epoch": value})
    if what == "state.json":
        broken = tmp_path / what
    else:
        broken = max(tmp_path.glob(f"{what}-*.safetensors"))
    broken.write_bytes(broken.read_bytes()[:20])
    if reopened:
        checkpoint = Checkpoint(tmp_path)
    tensors, meta = checkpoint.load()
    assert (tensors["run"]["x"][0].item(), meta) == (2.0, {"epoch": 2.0})
    assert "going on with the state before it" in caplog.text
    assert broken.name in caplog.text
    for value in (4.0, 5.0):
        checkpoint.save(state(value), {"epoch": value})
    assert loaded(tmp_path) == (5.0, {"epoch": 5.0})
    assert len(list(tmp_path.iterdir())) == 6


def test_the_state_of_another_run_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.run = {"method": "bmr", "inputs": (3, 4), "data": "abc"}
    for value in (1.0, 2.0):
        checkpoint.save(state(value), {})
    again = Checkpoint(tmp_path)
    again.run = checkpoint.run
    again.load()
    for changed, words in (
        ({"method": "spam"}, "began with method=bmr, not spam"),
        ({"inputs": (3, 5)}, r"began with inputs=\[3, 4\], not \[3, 5\]"),
        ({"data": "abd"}, "began with other data"),
        ({"epochs": 3}, "began with epochs=None, not 3"),
    ):
        again.run = {**checkpoint.run, **changed}
        with pytest.raises(BayespareError, match=words):
            again.load()


def test_a_digest_tells_values_types_and_shapes_apart():
    zeros = torch.zeros(2, 3)
    others = [zeros.T, zeros.double(), zeros - 0.0, zeros + 1e-30, zeros.bfloat16(), zeros[0]]
    found = [digest([tensor]) for tensor in (zeros, *others)]
    assert len(set(found)) == 6  # 0 - 0 is 0
    assert digest([zeros, zeros]) != digest([zeros])


@pytest.mark.parametrize("fails", ["run", "teacher", "state-before.json", "state.json"])
def test_a_full_disk_keeps_both_states_and_leaves_nothing(tmp_path, monkeypatch, fails):
    checkpoint = Checkpoint(tmp_path)
    for value in (1.0, 2.0):
        checkpoint.save(state(value), {"epoch": value})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    original, full = os.fsync, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(handle):
        if f".{fails}" in os.readlink(f"/proc/self/fd/{handle}"):
            raise full
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(WriteError, match=rf"{fails}.*: cannot be written \(No space left"):
            checkpoint.save(state(3.0), {"epoch": 3.0})
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if fails == "state.json":  # the one before is the newest once more
        assert before["state.json"] == after["state-before.json"]
        before["state-before.json"] = after["state-before.json"]
    assert loaded(tmp_path) == (2.0, {"epoch": 2.0})
    assert {name: after.get(name) for name in before} == before
    assert len(after) == len(before)
    checkpoint.save(state(4.0), {"epoch": 4.0})
    assert loaded(tmp_path) == (4.0, {"epoch": 4.0})


def test_what_is_removed_is_never_half_there(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "c")
    for value in (1.0, 2.0):
        checkpoint.save(state(value), {})
    monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
    checkpoint.remove()
    assert list((tmp_path / "c").glob("*.safetensors"))
    assert not Checkpoint(tmp_path / "c").exists()


def test_two_damaged_states_are_an_error(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    for value in (1.0, 2.0):
        checkpoint.save(state(value), {})
    for path in tmp_path.glob("run-*"):
        path.write_bytes(b"")
    with pytest.raises(BayespareError, match=r"run-0*\d+\.safetensors"):
        Checkpoint(tmp_path).load()


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "sub/../x", 5, None],
)
def test_names_outside_the_folder_are_refused(tmp_path, name):
    (tmp_path / "secret.safetensors").write_bytes(b"")
    write_tensors(tmp_path / "secret.safetensors", {"x": torch.zeros(1)})
    folder = tmp_path / "run"
    checkpoint = Checkpoint(folder)
    checkpoint.save(state(1.0), {})
    rewrite(folder, files={"run": name})
    with pytest.raises(BayespareError, match=str(folder.name)):
        checkpoint.load()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "3", "{}", '{"files": 3}', "[" * 100_000),
        '{"files": {}, "counter": 1}',
        '{"files": {}, "counter": "x", "meta": {}}',
        '{"files": {}, "counter": 1, "meta": 7}',
    ],
    ids=range(11),
)
def test_a_damaged_state_names_its_file(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(BayespareError, match=r"state\.json") as caught:
        Checkpoint(tmp_path).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "overwritten"])
def test_damaged_tensors_name_their_file(tmp_path, damage):
    Checkpoint(tmp_path).save(state(1.0), {})
    path = next(tmp_path.glob("run-*"))
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": content[:-5], "emptied": b"", "overwritten": b"\xff" * len(content)}[
                damage
            ]
        )
    with pytest.raises(BayespareError, match=path.name) as caught:
        Checkpoint(tmp_path).load()
    assert "\n" not in str(caught.value)


@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bytes_never_raise_anything_else(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped")
    Checkpoint(folder).save(state(1.0), {"epoch": 1})
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    with suppress(BayespareError):
        Checkpoint(folder).load()


def test_files_that_are_not_text_or_not_there_are_named(tmp_path):
    with pytest.raises(BayespareError, match=r"a\.json.*No such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BayespareError, match=r"b\.json"):
        read_json(tmp_path / "b.json")
    with pytest.raises(BayespareError, match=r"c\.safetensors: no such file"):
        read_tensors(tmp_path / "c.safetensors")


def test_whole_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    """A run told seed=np.int64(3) is not lost when its config is written at the end."""
    write_json(tmp_path / "config.json", {"seed": np.int64(3)})
    assert read_json(tmp_path / "config.json") == {"seed": 3}
    with pytest.raises(TypeError, match="Tensor cannot be written as JSON"):
        write_json(tmp_path / "config.json", {"seed": torch.ones(2)})
