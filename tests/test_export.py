"""``bayespare.export``: the files run elsewhere and say what the model says, or are not written."""

from __future__ import annotations

import logging
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayespare
from bayespare import BayespareError, Verdict, nets
from bayespare.structure import Select

SHAPES = {  # spec, shape of one example
    "mlp": ("mlp:9,7,act=silu", (6,)),
    "lenet5": ("lenet5", (1, 16, 16)),
    "resnet20": ("resnet20:width=4", (3, 8, 8)),
    "vit": ("vit:dim=16,depth=1,heads=4,mlp=12,patch=4", (3, 8, 8)),
    "simple-vit": ("simple-vit:dim=8,depth=1,heads=2,head=3,mlp=6", (1, 8, 8)),
    "mixer": ("mixer:dim=8,depth=1,tokens=5,mlp=6", (3, 8, 8)),
}


def conv_bn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def subject(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with random parameters and statistics, about half of whose units are removed."""
    torch.manual_seed(0)
    if name == "conv-bn":
        model, shape = conv_bn(), (2, 9, 8)
    else:
        spec, shape = SHAPES[name]
        model = nets.build(spec, inputs=shape, outputs=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    example = torch.randn(2, *shape)
    plan = bayespare.trace(model.eval(), example)
    keep = {group.name: torch.rand(group.size) < 0.5 for group in plan.groups}
    for flags in keep.values():
        flags[0] = True
    small = bayespare.compact(model, Verdict(plan, keep), example=example)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return small, shape


def onnx_outputs(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})


def torch_outputs(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    outputs = torch.export.load(path).module()(*inputs)
    return [y.detach().numpy() for y in (outputs if isinstance(outputs, tuple) else (outputs,))]


RUN = {"onnx": onnx_outputs, "torch": torch_outputs}


def worst(path: Path, format: str, model: nn.Module, *inputs: Tensor) -> float:
    """Largest difference to the model, relative to its largest output."""
    with torch.no_grad():
        expected = model.eval()(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    got = RUN[format](path, *inputs)
    assert [y.shape for y in got] == [tuple(x.shape) for x in expected]
    pairs = zip((x.numpy() for x in expected), got, strict=True)
    return max(float(abs(x - y).max() / abs(x).max()) for x, y in pairs)


@pytest.mark.parametrize("name", [*SHAPES, "conv-bn"])
def test_files_of_compact_networks_say_what_the_networks_say(name: str, tmp_path: Path) -> None:
    model, shape = subject(name)
    if name == "mlp":
        assert any(isinstance(module, Select) for module in model.modules())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    for format in RUN:
        path = tmp_path / f"model.{format}"
        done = bayespare.export(model, torch.zeros(1, *shape), path, format)
        assert done.bytes == path.stat().st_size
        assert done.difference <= 1e-5
        assert model.training
        for rows in (1, 7, 40):
            assert worst(path, format, model, 2 * torch.randn(rows, *shape) + 1) <= 1e-5
        model.train()
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["model.onnx", "model.torch"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class Pair(nn.Module):
    """Integers and numbers in, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.mix = nn.Linear(4 + 3, 2)

    def forward(self, words: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.embed(words).mean(1)
        return self.mix(torch.cat((y, x), 1)), y


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_several_inputs_and_outputs_share_the_batch(format: str, tmp_path: Path) -> None:
    model, path = Pair(), tmp_path / "pair"
    words = torch.tensor([[0, 4, 1], [2, 2, 3]])
    bayespare.export(model, (words, torch.zeros(2, 3)), path, format)
    for rows in (1, 5):
        inputs = torch.randint(5, (rows, 3)), torch.randn(rows, 3)
        assert worst(path, format, model, *inputs) <= 1e-5
    if format == "onnx":
        graph = onnx.load(path).graph
        assert [x.name for x in (*graph.input, *graph.output)] == [
            *("input1", "input2", "output1", "output2")
        ]


def test_an_onnx_file_names_its_batch_and_nothing_of_this_machine(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = nets.build("mlp:5,dropout=0.3", inputs=(4,), outputs=3)
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):  # and warnings are errors in all tests
        for path in (first, second):
            bayespare.export(model, torch.zeros(1, 4), path, notes={"bayespare": '{"a": 1}'})
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert torch.equal(state, torch.get_rng_state())
    proto = onnx.load(first)
    sizes = [
        [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim]
        for x in (*proto.graph.input, *proto.graph.output)
    ]
    assert sizes == [["batch", 4], ["batch", 3]]
    assert {p.key: p.value for p in proto.metadata_props} == {"bayespare": '{"a": 1}'}
    assert {n.domain for n in proto.graph.node} == {""}  # operators of the standard only
    assert not any(n.metadata_props or n.doc_string for n in proto.graph.node)
    content = first.read_bytes()
    assert content == second.read_bytes()
    for place in (str(Path(bayespare.__file__).parent), str(Path(torch.__file__).parent), ".py"):
        assert place.encode() not in content


def test_a_torch_file_holds_no_pickle_no_data_and_nothing_of_this_machine(tmp_path: Path) -> None:
    model, path = nets.build("mlp:5", inputs=(4,), outputs=3), tmp_path / "net.pt2"
    bayespare.export(model, torch.full((2, 4), 7.25), path, "torch", notes={"about": "me"})
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert {name.partition("/")[0] for name in files} == {"net"}
    for name, content in files.items():
        assert not content.startswith((b"\x80", b"PK")), name  # neither pickle nor torch.save
        assert b".py" not in content, name
        assert b"data.pkl" not in content, name
    assert not files["net/data/sample_inputs/model.pt"]
    asked = {"about": ""}
    torch.export.load(path, extra_files=asked)
    assert asked == {"about": "me"}


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    model, path = nets.build("mlp:5", inputs=(4,), outputs=3), tmp_path / "net.pt2"
    path.write_text("mine")
    with pytest.raises(BayespareError, match="exists; choose another file"):
        bayespare.export(model, torch.zeros(1, 4), path, "torch")
    assert path.read_text() == "mine"
    bayespare.export(model, torch.zeros(1, 4), path, "torch", exist_ok=True)
    assert zipfile.is_zipfile(path)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) > 0 else x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3) if len(x) == 2 else x


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float("nan")


WRONG = {
    "format": (nn.Linear(3, 2), torch.zeros(1, 3), "format=onxn: unknown (did you mean 'onnx'?)"),
    "shape": (nn.Linear(3, 2), torch.zeros(1, 4), "does not run on inputs of shape (1, 4)"),
    "scalar": (nn.Linear(3, 2), torch.zeros(()), "needs a first dimension, the batch"),
    "empty": (nn.Linear(3, 2), torch.zeros(0, 3), "needs a first dimension, the batch"),
    "branches": (Branches(), torch.zeros(1, 3), "cannot trace the model for every batch size"),
    "fixed": (FixedBatch(), torch.zeros(1, 3), "cannot trace the model for every batch size"),
    "nan": (NotANumber(), torch.zeros(1, 3), "no finite output"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_exported_is_one_line_and_no_file(what: str, tmp_path: Path) -> None:
    model, example, message = WRONG[what]
    format = "onxn" if what == "format" else "torch"
    with pytest.raises(BayespareError) as caught:
        bayespare.export(model, example, tmp_path / "net.pt2", format)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_needs_a_folder_and_a_name(tmp_path: Path) -> None:
    model, example = nn.Linear(3, 2), torch.zeros(1, 3)
    with pytest.raises(BayespareError, match="is a folder; give the name of a file"):
        bayespare.export(model, example, tmp_path, "torch")
    with pytest.raises(BayespareError, match="there is no folder"):
        bayespare.export(model, example, tmp_path / "no" / "net.pt2", "torch")


def test_a_runtime_without_an_operator_is_named(tmp_path: Path) -> None:
    model = nn.Conv2d(1, 2, 3).double()  # ONNX Runtime has float32 convolutions only
    with pytest.raises(BayespareError, match="the ONNX file does not load"):
        bayespare.export(model, torch.zeros(1, 1, 4, 4).double(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_file_that_says_something_else_is_not_kept(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = nets.build("mlp:5", inputs=(4,), outputs=3), tmp_path / "net"
    path.write_text("mine")
    traced = torch.export.export

    def careless(module: nn.Module, *args: object, **keywords: object) -> object:
        with torch.no_grad():
            next(module.parameters())[0] += 1e-3
        return traced(module, *args, **keywords)

    monkeypatch.setattr(torch.export, "export", careless)
    with pytest.raises(BayespareError, match=r"differs from the model by .*; nothing was written"):
        bayespare.export(model, torch.zeros(1, 4), path, format, exist_ok=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


class Cancels(nn.Module):
    """The small difference of two large sums: float32 is good for three digits of it."""

    def __init__(self) -> None:
        super().__init__()
        self.plus, self.minus = nn.Linear(2048, 3), nn.Linear(2048, 3)
        self.minus.load_state_dict(self.plus.state_dict())
        self.minus.weight.data += 1e-5 * torch.randn(3, 2048)

    def forward(self, x: Tensor) -> Tensor:
        return self.plus(x + 9) - self.minus(x + 9)


def test_rounding_of_the_model_itself_is_not_held_against_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, path = Cancels(), tmp_path / "net.onnx"
    done = bayespare.export(model, torch.zeros(1, 2048), path)
    assert 1e-5 < done.difference < 1e-2
    monkeypatch.setattr(sys.modules["bayespare.export"], "ROUNDING", 1e-9)
    with pytest.raises(BayespareError, match="differs from the model"):
        bayespare.export(model, torch.zeros(1, 2048), path, exist_ok=True)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make the packages look as if they were not installed."""
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_command(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, package)
    model, example = nn.Linear(3, 2), torch.zeros(1, 3)
    with pytest.raises(BayespareError) as caught:
        bayespare.export(model, example, tmp_path / "net.onnx")
    assert f"needs {package}, which is not installed" in str(caught.value)
    assert "pip install 'bayespare[export]'" in str(caught.value)
    bayespare.export(model, example, tmp_path / "net.pt2", "torch")


def test_onnx_itself_checks_the_file_where_there_is_no_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = nets.build("mlp:5", inputs=(4,), outputs=3), tmp_path / "net.onnx"
    with monkeypatch.context() as patch:
        without(patch, "onnxruntime")
        done = bayespare.export(model, torch.zeros(1, 4), path)
    assert done.runtime == f"onnx {onnx.__version__} (reference evaluator)"
    assert done.difference <= 1e-5
    assert worst(path, "onnx", model, torch.randn(3, 4)) <= 1e-5


def test_a_network_of_zero_outputs_is_exported(tmp_path: Path) -> None:
    """Outputs that are zero everywhere are equal, not 0 / 0."""
    model = nets.build("resnet20:width=2,norm=fixup", inputs=(1, 8, 8), outputs=2)
    done = bayespare.export(model, torch.zeros(1, 1, 8, 8), tmp_path / "net.pt2", "torch")
    assert done.difference == 0
    x = torch.randn(3, 1, 8, 8)
    assert not F.relu(model(x)).any()
