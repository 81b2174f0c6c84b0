import sys

import numpy as np
import pytest
import torch

from bayespare.data import BUNDLED, load, read_inputs, transform_from_json
from bayespare.errors import BayespareError

SHAPES = {  # rows, inputs, outputs
    "digits": (1797, 64, 10),
    "breast_cancer": (569, 30, 2),
    "wine": (178, 13, 3),
    "iris": (150, 4, 3),
    "diabetes": (442, 10, 1),
}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled(name):
    rows, inputs, outputs = SHAPES[name]
    splits = load(name)
    parts = (splits.train, splits.valid, splits.test)
    assert sum(map(len, parts)) == rows
    assert len(splits.test) == round(0.2 * rows)
    assert splits.train.inputs == (inputs,)
    assert splits.train.outputs == outputs
    assert len(set(splits.train.features)) == inputs
    assert splits.name == splits.source == name
    assert len(splits.fingerprint) == 64
    assert all(torch.isfinite(part.x).all() for part in parts)
    every = read_inputs(name, splits.transform, target=splits.target)
    assert sorted(every.y.tolist()) == sorted(torch.cat([part.y for part in parts]).tolist())


def test_names_of_classes_keep_their_index():
    splits = load("breast_cancer")
    assert splits.train.classes == ("malignant", "benign")
    y = torch.cat([part.y for part in (splits.train, splits.valid, splits.test)])
    assert y.bincount().tolist() == [212, 357]


def pixels(splits, part):
    """The digits as scikit-learn has them, whole numbers from 0 to 16; no two are equal."""
    x = getattr(splits, part).x.double() * splits.transform.std[0] + splits.transform.mean[0]
    return [tuple(row) for row in x.round().int().tolist()]


def test_test_rows_are_the_same_for_every_seed_and_disjoint_from_the_others():
    first, again, other = (load("digits", seed=seed) for seed in (0, 0, 1))
    assert pixels(first, "test") == pixels(other, "test")
    assert torch.equal(first.valid.x, again.valid.x)
    assert set(pixels(first, "valid")) != set(pixels(other, "valid"))
    rows = [row for part in ("train", "valid", "test") for row in pixels(first, part)]
    assert len(set(rows)) == len(rows) == 1797


def test_shares_of_classes_are_kept():
    splits = load("breast_cancer", valid=0.25)
    for part in (splits.train, splits.valid, splits.test):
        assert part.y.float().mean().item() == pytest.approx(357 / 569, abs=0.01)


def test_bundled_columns_can_be_read_from_a_table(tmp_path):
    splits = load("iris")
    path = tmp_path / "new.csv"
    names = splits.train.features
    path.write_text(",".join(reversed(names)) + "\n0.2,1.4,3.5,5.1\n")
    x, _ = read_inputs(str(path), splits.transform)
    slow = (np.array([5.1, 3.5, 1.4, 0.2]) - splits.transform.mean) / splits.transform.std
    np.testing.assert_allclose(x[0].numpy(), slow, rtol=1e-5)
    path.write_text(",".join(names) + "\n5.1,,1.4,0.2\n")
    with pytest.raises(BayespareError, match=r"'sepal width \(cm\)', row 1 \(line 2\)"):
        read_inputs(str(path), splits.transform)


def test_arrays_and_tables_are_not_mixed_up(tmp_path):
    np.savez(
        tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(30, 2, 3)), y=np.arange(30) % 2
    )
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(30)))
    arrays = load(str(tmp_path / "a.npz"))
    table = load(str(tmp_path / "t.csv"), target="y")
    with pytest.raises(BayespareError, match=r"arrays of shape \(2, 3\), not a table"):
        read_inputs(str(tmp_path / "t.csv"), arrays.transform)
    with pytest.raises(BayespareError, match=r"fitted on a table .* give a \.csv or \.parquet"):
        read_inputs(str(tmp_path / "a.npz"), table.transform)
    with pytest.raises(BayespareError, match="target=y names a column, but this is not a table"):
        load(str(tmp_path / "a.npz"), target="y")
    with pytest.raises(BayespareError, match="impute=mean is for tables"):
        load(str(tmp_path / "a.npz"), impute="mean")
    with pytest.raises(BayespareError, match=r"unknown impute=men \(did you mean 'mean'\?\)"):
        load(str(tmp_path / "t.csv"), target="y", impute="men")


def test_fingerprint_follows_the_bytes(tmp_path):
    path = tmp_path / "t.csv"
    text = "a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(30))
    path.write_text(text)
    first = load(str(path), target="y").fingerprint
    assert load(str(path), target="y", seed=3).fingerprint == first
    path.write_text(text + "7,0\n")
    assert load(str(path), target="y").fingerprint != first


def test_rare_classes_stay_in_the_training_part_and_are_named(tmp_path):
    path = tmp_path / "t.csv"
    labels = ["a"] * 15 + ["b"] * 15 + ["lonely"]
    path.write_text("x,y\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    splits = load(str(path), target="y")
    assert splits.train.classes == ("a", "b", "lonely")
    assert splits.train.y.bincount().tolist()[2] == 1
    assert "fewer than 3 rows of class lonely" in splits.note


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "houses.csv").write_text("a\n")
    for spec, message in (
        ("digit", "did you mean 'digits'?"),
        ("house.csv", "did you mean 'houses.csv'?"),
        ("nothing/like/it", "(known: breast_cancer, diabetes, digits, iris, wine)"),
        ("~nobody_here/x", "there is no such file"),
    ):
        with pytest.raises(BayespareError) as caught:
            load(spec)
        assert message in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(BayespareError, match="folder holds neither IDX files"):
        load("folder")
    (tmp_path / "notes.docx").write_text("?")
    with pytest.raises(BayespareError, match="unknown kind of file"):
        load("notes.docx")


@pytest.mark.parametrize("valid", [0, 1, -1, 2.0])
def test_share_for_validation(valid):
    with pytest.raises(BayespareError, match="not between 0 and 1"):
        load("iris", valid=valid)


@pytest.mark.parametrize(("package", "extra"), [("sklearn", "sklearn"), ("pyarrow", "tables")])
def test_missing_package_names_the_extra(tmp_path, monkeypatch, package, extra):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1")
    for module in list(sys.modules):
        if module.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BayespareError, match=rf"pip install 'bayespare\[{extra}\]'"):
        load(
            "iris" if package == "sklearn" else str(path),
            target=None if package == "sklearn" else "y",
        )


FORMS = ("both", "inputs", "target", "neither")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["numbers", "bytes", "table"])
def test_what_is_not_standardised_is_as_stored(tmp_path, kind, form):
    generator = np.random.default_rng(0)
    y = generator.normal(300, 40, 50)
    if kind == "table":
        x = generator.normal(7, 3, (50, 2))
        lines = [f"{a!r},{b!r},red,{c!r}" for (a, b), c in zip(x.tolist(), y.tolist(), strict=True)]
        path = tmp_path / "d.csv"
        path.write_text("\n".join(["a,b,colour,y", *lines, "1.0,2.0,blue,3.0"]))
        splits = load(str(path), target="y", standardize=form)
    else:
        pixels = generator.integers(0, 256, (50, 3, 4, 4), dtype=np.uint8)
        x = pixels if kind == "bytes" else generator.normal(7, 3, (50, 5))
        path = tmp_path / "d.npz"
        np.savez(path, x=x, y=y)
        splits = load(str(path), standardize=form)
    train = splits.train
    inputs = train.x[:, :2] if kind == "table" else train.x
    if form in ("both", "inputs"):
        assert abs(float(inputs.mean())) < 1e-5
    elif kind == "bytes":
        assert 0 <= float(inputs.min()) < 0.1
        assert 0.9 < float(inputs.max()) <= 1
    else:
        stored = np.append(x.flatten(), [1.0, 2.0])
        distance = np.abs(inputs.double().flatten().numpy()[:, None] - stored).min(1)
        assert distance.max() < 1e-5
    if kind == "table":  # categories are 0 and 1 in any case
        assert set(train.x[:, 2:].flatten().tolist()) == {0.0, 1.0}
    if form in ("both", "target"):
        assert float(train.y.mean()) == pytest.approx(0, abs=1e-5)
        assert train.target_scale[0] == pytest.approx(300, abs=40)
    else:
        assert float(train.y.mean()) == pytest.approx(300, abs=40)
        assert train.target_scale == (0.0, 1.0)
    again = transform_from_json(splits.transform.to_json())
    new = read_inputs(str(path), again, target=splits.target)
    assert len(new.y) == len(y) + (kind == "table")
    whole = torch.cat([train.x, splits.valid.x, splits.test.x])
    assert float(new.x.double().sum()) == pytest.approx(
        float(whole.double().sum()), rel=1e-5, abs=1e-2
    )


def test_an_unknown_standardize_is_refused():
    with pytest.raises(BayespareError, match="did you mean 'neither'"):
        load("iris", standardize="neiter")
