"""CIFAR-10 as it lies beside the other benchmark data: chunks of 5,000 images, ``*.npz.xz``.

Images are stored as differences modulo 256 along rows and columns, of (R - G, G, B - G); two
cumulative sums give the pixels back.
"""

import io
import lzma
from pathlib import Path

import numpy as np
import torch

from bayespare.data import Dataset, hold_out

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def read_chunk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8, shape (N, 3, 32, 32), and labels of one file."""
    with lzma.open(path, "rb") as file:
        arrays = np.load(io.BytesIO(file.read()), allow_pickle=False)
    x = arrays["r"]
    for axis in (3, 2):
        x = np.add.accumulate(x, axis=axis, dtype=np.uint8)
    x[:, 0] += x[:, 1]
    x[:, 2] += x[:, 1]
    return x, arrays["y"]


def cifar10(folder: Path, seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Training data (18,000), validation data (2,000, drawn by the seed) and test data (10,000).

    Standardised by channel with the mean and deviation of the 20,000.
    """
    parts = {}
    for name in ("train", "test"):
        chunks = [read_chunk(path) for path in sorted(folder.glob(f"{name}_*.npz.xz"))]
        x = torch.from_numpy(np.concatenate([x for x, _ in chunks])).float()
        y = torch.from_numpy(np.concatenate([y for _, y in chunks])).long()
        parts[name] = (x, y)
    std, mean = torch.std_mean(parts["train"][0], dim=(0, 2, 3), keepdim=True)
    known, test = (
        Dataset((x - mean) / std, y, "classification", tuple(CLASSES)) for x, y in parts.values()
    )
    train, valid = hold_out(known, seed=seed)
    return train, valid, test
