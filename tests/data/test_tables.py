import csv
import json

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bayespare.data import TableTransform, load, read_inputs, transform_from_json
from bayespare.data.csv_table import read_csv
from bayespare.data.parquet_table import read_parquet
from bayespare.data.place import Place
from bayespare.data.table import Table
from bayespare.errors import BayespareError

ROWS = 60
COLOURS = ("red", "green", "blue")
COLUMNS = {
    "age": [20 + (7 * i) % 31 for i in range(ROWS)],
    "colour": ["green" if i % 2 else COLOURS[i // 2 % 3] for i in range(ROWS)],
    "member": [i % 4 == 0 for i in range(ROWS)],
    "height": [1.5 + 0.01 * ((11 * i) % 37) for i in range(ROWS)],
    "label": [("yes", "no")[(i // 3) % 2] for i in range(ROWS)],
}


def write_csv(path, columns, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


def write_parquet(path, columns):
    parquet.write_table(pyarrow.table(columns), path)
    return str(path)


WRITERS = {"data.csv": write_csv, "data.parquet": write_parquet}


def changed(column, row, value):
    columns = {name: list(values) for name, values in COLUMNS.items()}
    columns[column][row] = value
    return columns


@pytest.mark.parametrize("name", WRITERS)
def test_features_groups_and_standardisation(tmp_path, name):
    splits = load(WRITERS[name](tmp_path / name, COLUMNS), target="label")
    train = splits.train
    assert train.task == "classification"
    assert train.classes == ("no", "yes")
    assert train.features == (
        *("age", "colour=blue", "colour=green", "colour=red"),
        *("member=False", "member=True", "height"),
    )
    assert train.feature_groups == (0, 1, 1, 1, 2, 2, 3)
    assert train.x[:, [0, 6]].mean(dim=0).abs().max() < 1e-6
    assert (train.x[:, [0, 6]].std(dim=0, correction=0) - 1).abs().max() < 1e-5
    assert torch.equal(train.x[:, 1:4].sum(dim=1), torch.ones(len(train)))
    assert splits.transform is train.transform
    assert splits.target.column == "label"


def test_every_row_is_what_the_slow_way_gives(tmp_path):
    path = write_csv(tmp_path / "data.csv", COLUMNS)
    splits = load(path, target="label")
    x, y = read_inputs(path, splits.transform, target=splits.target)
    age, _, _, height = splits.transform.columns
    for i in range(ROWS):
        row = {name: values[i] for name, values in COLUMNS.items()}
        slow = [(row["age"] - age.mean) / age.std]
        slow += [float(row["colour"] == c) for c in sorted(COLOURS)]
        slow += [float(row["member"] is b) for b in (False, True)]
        slow += [(row["height"] - height.mean) / height.std]
        np.testing.assert_allclose(x[i].numpy(), slow, rtol=1e-5, atol=1e-6)
        assert splits.target.classes[y[i]] == row["label"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_and_byte_order_mark(tmp_path, delimiter):
    path = tmp_path / "data.csv"
    plain = load(write_csv(path, COLUMNS), target="label")
    write_csv(path, COLUMNS, delimiter)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert torch.equal(load(str(path), target="label").train.x, plain.train.x)


def test_csv_and_parquet_agree(tmp_path):
    first, second = (
        load(write(tmp_path / n, COLUMNS), target="label") for n, write in WRITERS.items()
    )
    assert torch.equal(first.test.x, second.test.x)
    assert first.transform == second.transform
    assert first.fingerprint != second.fingerprint


def test_new_table_may_have_another_order_more_columns_and_no_target(tmp_path):
    splits = load(write_csv(tmp_path / "data.csv", COLUMNS), target="label")
    expected = read_inputs(str(tmp_path / "data.csv"), splits.transform).x
    new = {"id": range(ROWS), **{n: COLUMNS[n] for n in ("height", "member", "colour", "age")}}
    for name, write in WRITERS.items():
        new_path = write(tmp_path / f"new_{name}", {k: list(v) for k, v in new.items()})
        x, y = read_inputs(new_path, splits.transform, target=splits.target)
        assert torch.equal(x, expected)
        assert y is None


def test_dropped_columns_are_not_looked_at(tmp_path):
    columns = {**COLUMNS, "id": [f"row {i}" for i in range(ROWS)]}
    path = write_csv(tmp_path / "data.csv", columns)
    with pytest.raises(BayespareError, match=r"60 distinct texts.*leave it out \(drop=id\)"):
        load(path, target="label")
    transform = load(path, target="label", drop=("id", "colour")).transform
    kept = [n for n in COLUMNS if n not in {"label", "colour"}]
    assert [column.name for column in transform.columns] == kept
    new = write_csv(tmp_path / "new.csv", {name: COLUMNS[name] for name in kept})
    assert torch.equal(read_inputs(new, transform).x, read_inputs(path, transform).x)
    for wrong, why in (("idd", "no column 'idd'"), ("label", "drop=label: that is the target")):
        with pytest.raises(BayespareError, match=why):
            load(path, target="label", drop=(wrong,))


def test_transform_and_target_survive_json(tmp_path):
    path = write_csv(tmp_path / "data.csv", changed("age", 3, ""))
    splits = load(path, target="label", impute="median")
    stored = json.loads(json.dumps([splits.transform.to_json(), splits.target.to_json()]))
    assert transform_from_json(stored[0]) == splits.transform
    assert type(splits.target).from_json(stored[1]) == splits.target


@pytest.mark.parametrize(
    ("field", "value"),
    [("std", 0), ("mean", "x"), ("mean", float("nan")), ("kind", "text"), ("fill", []), (None, 0)],
)
def test_damaged_transform_is_refused(tmp_path, field, value):
    splits = load(write_csv(tmp_path / "data.csv", COLUMNS), target="label")
    data = splits.transform.to_json()
    if field is None:
        del data["columns"][0]["std"]
    else:
        data["columns"][0][field] = value
    with pytest.raises(BayespareError, match="damaged"):
        transform_from_json(data)


@pytest.mark.parametrize("impute", ["mean", "median"])
@pytest.mark.parametrize("name", WRITERS)
def test_imputed_numbers_come_from_the_training_rows(tmp_path, name, impute):
    columns = changed("height", 5, None)
    for row in (1, 2, 8, 20):
        columns["colour"][row] = None
    path = tmp_path / name
    WRITERS[name](path, columns)
    table = (read_csv if path.suffix == ".csv" else read_parquet)(path)
    rows = np.arange(ROWS) % 3 != 0
    transform = TableTransform.fit(table, rows, target="label", impute=impute)
    column = transform.columns[3]
    present = [v for v, row in zip(columns["height"], rows, strict=True) if row and v is not None]
    assert column.fill == pytest.approx(
        np.mean(present) if impute == "mean" else np.median(present)
    )
    filled = [column.fill if v is None else v for v in columns["height"]]
    assert column.mean == pytest.approx(np.array(filled)[rows].mean())
    assert column.std == pytest.approx(np.array(filled)[rows].std())
    assert transform.columns[1].fill == "green"
    x = transform.apply(table, Place(name))
    assert x[5, 6].item() == pytest.approx((column.fill - column.mean) / column.std, abs=1e-5)
    assert x[8, 1:4].tolist() == [0, 1, 0]


def test_a_missing_value_in_new_data_is_refused_unless_it_was_imputed(tmp_path):
    path = write_csv(tmp_path / "data.csv", COLUMNS)
    new = write_csv(tmp_path / "new.csv", changed("age", 16, "NA"))
    with pytest.raises(BayespareError, match=r"new.csv: column 'age', row 17 \(line 18\)"):
        read_inputs(new, load(path, target="label").transform)
    filled = load(path, target="label", impute="mean").transform
    assert read_inputs(new, filled).x[16, 0].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("columns", "target", "message"),
    [
        (COLUMNS, None, "say which column to predict, target=... (columns: age, colour, member"),
        (COLUMNS, "lable", "there is no column 'lable' (did you mean 'label'?)"),
        (COLUMNS, "zzz", "there is no column 'zzz' (known: age, colour"),
        ({**COLUMNS, "label": ["a"] * ROWS}, "label", "column 'label': the target has one value"),
        ({**COLUMNS, "label": [2.5] * ROWS}, "label", "one value only ('2.5')"),
        (changed("age", 16, ""), "label", "column 'age', row 17 (line 18): the value is missing"),
        (changed("age", 16, "?"), "label", "row 17 (line 18): the value is missing"),
        (changed("age", 16, "NaN"), "label", "row 17 (line 18): the value is missing"),
        (changed("colour", 0, ""), "label", "column 'colour', row 1 (line 2)"),
        (changed("age", 16, "inf"), "label", "row 17 (line 18): the value is infinite"),
        (changed("age", 16, "1e308"), "label", "column 'age': the values are too large"),
        (changed("age", 16, "12,5"), "label", "row 17 (line 18): '12,5' is not a number"),
        (changed("label", 16, ""), "label", "row 17 (line 18): the target is missing"),
        ({**COLUMNS, "age": [""] * ROWS}, "label", "column 'age' has no values"),
        ({**COLUMNS, "name": [f"n{i}" for i in range(ROWS)]}, "label", "these are no categories"),
        (
            {**COLUMNS, "price": ["3,5", "4"] * 30},
            "label",
            "'3,5' and all others are numbers with c",
        ),
        ({**COLUMNS, "label": ["3,5", "4"] * 30}, "label", "column 'label': '3,5' and all others"),
        ({**COLUMNS, "day": ["2024-01-31", "2024-02-01"] * 30}, "label", "are dates"),
        ({**COLUMNS, "day": ["31.1.2024 12:00", "1.2.2024"] * 30}, "label", "(drop=day)"),
        ({**COLUMNS, "": range(ROWS)}, "label", "column 6 has no name"),
        ({**COLUMNS, " age ": range(ROWS)}, "label", "two columns are called 'age'"),
        ({"label": COLUMNS["label"]}, "label", "there is no column but the target"),
        ({name: [] for name in COLUMNS}, "label", "the table has no rows"),
    ],
)
def test_wrong_tables_are_one_line_errors(tmp_path, columns, target, message):
    path = write_csv(tmp_path / "data.csv", columns)
    with pytest.raises(BayespareError) as caught:
        load(path, target=target)
    assert message in str(caught.value)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not name the columns"),
        ("\n\n", "does not name the columns"),
        ("a,b,label\n1,2,x\n1,2\n", "row 2 (line 3) has 2 cells, the first line names 3"),
        ('a,b,label\n1,2,x\n1,"2,y\n', "line 3: unexpected end of data"),
        ("a,b,label\n1,2,x,9\n", "row 1 (line 2) has 4 cells"),
        (b"a,b\n\xff\xfe,1\n", "is not text in UTF-8"),
    ],
)
def test_ragged_and_unreadable_text(tmp_path, text, message):
    path = tmp_path / "data.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BayespareError) as caught:
        load(str(path), target="label")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (changed("colour", 2, "grene"), "row 3 (line 4): 'grene' is not one of the categories"),
        (changed("colour", 2, "grene"), "(did you mean 'green'?)"),
        (changed("age", 2, "old"), "row 3 (line 4): 'old' is not a number"),
        (changed("age", 2, "1e300"), "row 3 (line 4): 1e+300 is too large"),
        (changed("label", 2, "maybe"), "column 'label', row 3 (line 4): label 'maybe' is not one"),
        ({"age": [1], "colour": ["red"]}, "there is no column 'member'"),
    ],
)
def test_new_tables_that_do_not_fit(tmp_path, columns, message):
    splits = load(write_csv(tmp_path / "data.csv", COLUMNS), target="label")
    new = write_csv(tmp_path / "new.csv", columns)
    with pytest.raises(BayespareError) as caught:
        read_inputs(new, splits.transform, target=splits.target)
    assert message in str(caught.value)
    assert str(caught.value).startswith(new)


def test_parquet_types(tmp_path):
    path = tmp_path / "data.parquet"
    columns = {
        "small": pyarrow.array([i % 5 for i in range(ROWS)], pyarrow.int8()),
        "with_null": pyarrow.array([None, *range(1, ROWS)], pyarrow.int64()),
        "price": pyarrow.array([i / 4 for i in range(ROWS)]).cast(pyarrow.decimal128(12, 2)),
        "word": pyarrow.array([COLOURS[i % 3] for i in range(ROWS)]).dictionary_encode(),
        "zip": pyarrow.array([str(1000 + i % 3) for i in range(ROWS)], pyarrow.large_string()),
        "flag": pyarrow.array([None, *[i % 2 == 0 for i in range(1, ROWS)]]),
        "y": pyarrow.array([i * 1.5 for i in range(ROWS)]),
    }
    write_parquet(path, columns)
    splits = load(str(path), target="y", impute="median")
    assert splits.train.task == "regression"
    assert splits.train.features == (
        *("small", "with_null", "price", "word=blue", "word=green", "word=red"),
        *("zip=1000", "zip=1001", "zip=1002", "flag=False", "flag=True"),
    )
    with pytest.raises(BayespareError, match=r"'with_null', row 0 \(counting from 0\).*missing"):
        load(str(path), target="y")
    when = pyarrow.array([0, 1], pyarrow.timestamp("s"))
    write_parquet(path, {"when": when, "x": [3, 4], "y": [1, 2]})
    table = read_parquet(path)
    with pytest.raises(BayespareError, match=r"column 'when' is of type timestamp.*drop=when"):
        TableTransform.fit(table, np.ones(2, dtype=bool), target="y")
    kept = TableTransform.fit(table, np.ones(2, dtype=bool), target="y", drop=("when",))
    assert kept.features == ("x",)


@pytest.mark.parametrize("keep", [0, 3, 200, -1, -300])
def test_truncated_parquet(tmp_path, keep):
    path = tmp_path / "data.parquet"
    write_parquet(path, COLUMNS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BayespareError, match="damaged or not Parquet"):
        load(str(path), target="label")


def test_a_rare_category_may_lie_in_the_test_rows_alone(tmp_path):
    path = write_csv(tmp_path / "data.csv", COLUMNS)
    drawn = load(path, target="label").test.x[0]
    x = read_inputs(path, load(path, target="label").transform).x
    row = int((x == drawn).all(dim=1).int().argmax())
    splits = load(write_csv(tmp_path / "data.csv", changed("colour", row, "mauve")), target="label")
    at = splits.train.features.index("colour=mauve")
    assert not splits.train.x[:, at].any()
    assert splits.test.x[:, at].sum() == 1


cells = st.one_of(
    st.floats(-1e6, 1e6), st.integers(-(10**6), 10**6), st.sampled_from(["a", "b", "c d", "é"])
)


@settings(deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=2, max_size=30), st.data())
def test_any_table_gives_finite_inputs_that_do_not_depend_on_the_order(pairs, data):
    names = ("left", "right")
    columns = {}
    for name, values in zip(names, zip(*pairs, strict=True), strict=True):
        columns[name] = np.empty(len(pairs), dtype=object)
        columns[name][:] = [str(value) for value in values]
    table = Table("t.csv", {**columns, "y": np.arange(len(pairs))}, typed=False)
    rows = np.ones(len(pairs), dtype=np.bool_)
    try:
        transform = TableTransform.fit(table, rows, target="y")
    except BayespareError:
        # Only a column that looks like a slip or like free text may be refused.
        assert any(
            any(cell in "abcé" or cell == "c d" for cell in column) for column in columns.values()
        )
        return
    x = transform.apply(table, Place("t.csv"))
    assert x.shape == (len(pairs), len(transform.features))
    assert torch.isfinite(x).all()
    order = np.array(data.draw(st.permutations(range(len(pairs)))))
    mixed = Table("t.csv", {name: columns[name][order] for name in reversed(names)}, typed=False)
    assert torch.equal(transform.apply(mixed, Place("t.csv")), x[torch.from_numpy(order)])
    again = transform_from_json(json.loads(json.dumps(transform.to_json())))
    assert torch.equal(again.apply(table, Place("t.csv")), x)


def test_digits_with_dots_and_dashes_may_be_categories(tmp_path):
    """Versions, parts and a code that is a date but once are texts like others."""
    columns = {**COLUMNS, "part": ["1.2.3", "12-7"] * 30, "code": ["2024-01-31", "none"] * 30}
    train = load(write_csv(tmp_path / "data.csv", columns), target="label").train
    assert {"part=1.2.3", "part=12-7", "code=2024-01-31", "code=none"} < set(train.features)


def test_csv_cells_are_stripped_and_empty_lines_skipped(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('a, b ,c\n1, x ,"p, q"\n\n 2 ,y,r\n')
    table = read_csv(path)
    assert {name: list(values) for name, values in table.columns.items()} == {
        "a": ["1", "2"],
        "b": ["x", "y"],
        "c": ["p, q", "r"],
    }
    assert table.place("a").row(1) == f"{path}: column 'a', row 2 (line 4)"
