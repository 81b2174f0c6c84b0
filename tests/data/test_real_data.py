"""Checks on real data, which lie in the folder that BAYESPARE_DATA names."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bayespare.data import Batches, load

LABELS = {  # rows of each class in the training and the test files
    "mnist": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ),
    "fashion-mnist": ([6000] * 10, [1000] * 10),
}


def real(name: str) -> str:
    folder = os.environ.get("BAYESPARE_DATA")
    if not folder:
        pytest.skip(f"BAYESPARE_DATA is not set: no {name}")
    path = Path(folder, name)
    if not path.exists():
        pytest.skip(f"BAYESPARE_DATA has no {name}")
    return str(path)


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)]
)
def test_images_have_the_published_statistics(name, mean, std):
    splits = load(real(name))
    assert splits.transform.mean[0] == pytest.approx(mean, abs=5e-4)
    assert splits.transform.std[0] == pytest.approx(std, abs=5e-4)
    train, test = LABELS[name]
    counted = splits.train.y.bincount() + splits.valid.y.bincount()
    assert counted.tolist() == train
    assert splits.test.y.bincount().tolist() == test
    assert len(splits.valid) == 6000


def test_least_squares_on_raw_pixels_reads_mnist():
    """Images and labels are in step: a linear map gets 85 %, chance is 10 %."""
    splits = load(real("mnist"))
    x, y = next(iter(Batches(splits.train, 8000, shuffle=False)))
    design = torch.nn.functional.pad(x.flatten(1), (0, 1), value=1.0)
    gram = design.T @ design + 100 * torch.eye(785)
    weights = torch.linalg.solve(gram, design.T @ torch.nn.functional.one_hot(y, 10).float())
    test = torch.nn.functional.pad(splits.test.x.flatten(1), (0, 1), value=1.0)
    assert (test @ weights).argmax(1).eq(splits.test.y).float().mean() > 0.8


@pytest.mark.parametrize(
    ("name", "rows", "inputs", "outputs"),
    [("coil20", 1440, 1024, 20), ("madelon", 2600, 500, 2), ("colon", 62, 2000, 2)],
)
def test_feature_sets(name, rows, inputs, outputs):
    splits = load(real(f"features/{name}.npz"))
    assert len(splits.train) + len(splits.valid) + len(splits.test) == rows
    assert splits.train.inputs == (inputs,)
    assert splits.train.outputs == outputs


@pytest.mark.parametrize("name", ["boston", "concrete", "energy", "power", "wine", "yacht"])
def test_uci_as_csv(tmp_path, name):
    data = np.loadtxt(Path(real(f"uci/{name}"), "data.txt"))
    path = tmp_path / f"{name}.csv"
    header = ",".join(f"c{i}" for i in range(data.shape[1]))
    np.savetxt(path, data, delimiter=",", header=header, comments="")
    target = f"c{data.shape[1] - 1}"
    splits = load(str(path), target=target, task="regression")
    assert sum(len(part) for part in (splits.train, splits.valid, splits.test)) == len(data)
    assert torch.isfinite(splits.train.x).all()
    mean, std = splits.train.target_scale
    parts = [part.y.double() * std + mean for part in (splits.train, splits.valid, splits.test)]
    np.testing.assert_allclose(torch.cat(parts).mean(), data[:, -1].mean(), rtol=1e-5)
