"""Data: readers, splits, transforms and batches."""

from bayespare.data.batches import Batches, from_loader, from_tensors
from bayespare.data.bundled import BUNDLED
from bayespare.data.dataset import Dataset, Splits
from bayespare.data.load import Inputs, Standardized, load, read_inputs
from bayespare.data.split import hold_out
from bayespare.data.standardize import Standardize
from bayespare.data.table_transform import TableTransform
from bayespare.data.target import Target, Task, infer_task
from bayespare.data.transform import Transform, transform_from_json

__all__ = [
    "BUNDLED",
    "Batches",
    "Dataset",
    "Inputs",
    "Splits",
    "Standardize",
    "Standardized",
    "TableTransform",
    "Target",
    "Task",
    "Transform",
    "from_loader",
    "from_tensors",
    "hold_out",
    "infer_task",
    "load",
    "read_inputs",
    "transform_from_json",
]
