"""The grammar: verbs, keys, values, help, and files of keys."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from cli_caller import Caller
from hypothesis import given
from hypothesis import strategies as st

import bayespare
from bayespare.cli.keys import EvalKeys, ExplainKeys, FitKeys
from bayespare.cli.parse import Given, make_keys, read_keys, take_apart
from bayespare.cli.verbs import VERBS
from bayespare.errors import BayespareError


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("epochs=1e3", "epochs", 1000),
        ("epochs=10_000", "epochs", 10000),
        ("seed=0", "seed", 0),
        ("quick=on", "quick", True),
        ("quick=TRUE", "quick", True),
        ("baseline=off", "baseline", False),
        ("baseline=no", "baseline", False),
        ("tempering=auto", "tempering", "auto"),
        ("tempering=0.5", "tempering", 0.5),
        ("tempering=1", "tempering", 1.0),
        ("prior=theory", "prior", "theory"),
        ("prior=1/k", "prior", "1/k"),
        ("prior=1e-3", "prior", 0.001),
        ("net=mlp:64,act=silu", "net", "mlp:64,act=silu"),
        ("impute=median", "impute", "median"),
        ("time=90", "time", 90.0),
        ("time=10m", "time", 600.0),
        ("keep=fc1", "keep", ("fc1",)),
        ("keep=conv1, fc1.inputs", "keep", ("conv1", "fc1.inputs")),
        ("unit=feature", "unit", "feature"),
        ("finetune=0", "finetune", 0),
        ("lr=3e-4", "lr", 3e-4),
        ("max_macs=1e6", "max_macs", 1_000_000),
        ("max_latency_ms=0.5", "max_latency_ms", 0.5),
        ("sparsity=0.9", "sparsity", 0.9),
    ],
)
def test_a_value_is_read_as_what_its_key_holds(word: str, key: str, value: object) -> None:
    read = getattr(read_keys(FitKeys, [word], "fit"), key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("epochs=abc", "fit: epochs=abc: must be a whole number, such as 10000, 10_000 or 1e4"),
        ("epochs=1.5", "fit: epochs=1.5: must be a whole number"),
        ("epochs=0", "fit: epochs=0: must be 1 or more"),
        ("epochs=inf", "fit: epochs=inf: must be a whole number"),
        ("seed=-1", "fit: seed=-1: must be 0 or more"),
        ("quick=maybe", "fit: quick=maybe: must be true or false"),
        ("tempering=-1", "fit: tempering=-1: must be a number above 0, or auto"),
        ("tempering=nan", "fit: tempering=nan: must be a number, or auto"),
        ("prior=2", "fit: prior=2: must be a number between 0 and 1, or 1/k, or theory"),
        ("precision=float16", "precision=float16: must be float32 or bf16 (did you mean 'float32'"),
        ("settings=faithfull", "must be default or faithful (did you mean 'faithful'?)"),
        ("time=soon", "fit: time=soon: must be a time above 0, such as 90, 90s, 10m or 2h"),
        ("keep=a,,b", "fit: keep=a,,b: must be names with commas between them"),
        ("unit=units", "fit: unit=units: must be unit or feature or head or weight (did you mean"),
        ("finetune=-1", "fit: finetune=-1: must be 0 or more"),
        ("lr=0", "fit: lr=0: must be a number above 0"),
        ("max_macs=0", "fit: max_macs=0: must be 1 or more"),
        ("max_latency_ms=fast", "fit: max_latency_ms=fast: must be a number"),
        ("sparsity=1", "fit: sparsity=1: must be a number between 0 and 1"),
        ("max_mac=9", "fit: unknown key 'max_mac' (did you mean 'max_macs'?)"),
        ("epoch=3", "fit: unknown key 'epoch' (did you mean 'epochs'?)"),
        ("out=runs/x", "fit: unknown key 'out' (did you mean 'name'?)"),
        ("gpu=true", "fit: unknown key 'gpu' (did you mean 'device'?)"),
        ("digits", "fit: 'digits' is not of the form key=value"),
        ("data=", "fit: data= has no value"),
    ],
)
def test_a_wrong_word_is_named_with_what_would_be_right(word: str, complaint: str) -> None:
    with pytest.raises(BayespareError) as caught:
        read_keys(FitKeys, [word], "fit")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("data", "method"),
    [
        ("a/house.csv", "node-pip"),
        ("HOUSE.TSV", "node-pip"),
        ("house.parquet", "node-pip"),
        ("wine", "ss-ghs"),
        ("house.npz", "ss-ghs"),
        ("mnist/", "ss-ghs"),
    ],
)
def test_tables_have_a_method_of_their_own(data: str, method: str) -> None:
    assert read_keys(FitKeys, [f"data={data}"], "fit").method == method
    assert read_keys(FitKeys, [f"data={data}", "method=bmr"], "fit").method == "bmr"
    assert FitKeys().method == "ss-ghs"


def test_a_key_is_given_once() -> None:
    with pytest.raises(BayespareError, match=r"fit: seed= is given twice"):
        read_keys(FitKeys, ["seed=1", "seed=2"], "fit")
    with pytest.raises(BayespareError, match="'runs/y' is not of the form"):
        read_keys(EvalKeys, ["runs/x", "runs/y"], "eval")


def test_the_run_may_stand_without_its_key() -> None:
    bare, named = (read_keys(EvalKeys, [word], "eval") for word in ("runs/x", "run=runs/x"))
    assert bare == named
    assert bare.run == "runs/x"


def test_shapes() -> None:
    assert read_keys(ExplainKeys, ["inputs=1,28, 28"], "explain").inputs == (1, 28, 28)
    for wrong in ("inputs=1,,2", "inputs=0", "inputs=a"):
        with pytest.raises(BayespareError, match="such as 1,28,28"):
            read_keys(ExplainKeys, [wrong], "explain")


@given(st.integers(1, 10**9), st.sampled_from(["{}", "{:_}", "{:e}", "{}.0"]))
def test_every_way_to_write_a_number_reads_the_same(number: int, form: str) -> None:
    exact = int(float(form.format(number).replace("_", "")))
    assert read_keys(FitKeys, [f"epochs={form.format(number)}"], "fit").epochs == exact


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_numbers_keep_their_precision(value: float) -> None:
    assert read_keys(FitKeys, [f"tempering={value!r}"], "fit").tempering == value


@given(st.text(max_size=30))
def test_any_word_is_read_or_refused(word: str) -> None:
    with suppress(BayespareError):
        epochs = read_keys(FitKeys, [f"epochs={word}"], "fit").epochs
        assert epochs is not None
        assert epochs >= 1
    with suppress(BayespareError):
        assert read_keys(FitKeys, [word], "fit").model_fields_set


def test_flags() -> None:
    words = take_apart(["fit", "--json", "data=x", "-h"])
    assert (words.verb, words.rest, words.flags) == ("fit", ("data=x",), {"--json", "--help"})
    assert take_apart(["fit", "--epochs=3"]).rest == ("epochs=3",)
    with pytest.raises(BayespareError, match=r"unknown flag --jsn \(did you mean '--json'\?\)"):
        take_apart(["--jsn"])


def test_unknown_verbs_and_no_verb(cli: Caller) -> None:
    assert (said := cli("fitt")).code == 2
    assert said.error == "unknown verb 'fitt' (did you mean 'fit'?)"
    said = cli()
    assert said.code == 2
    assert "usage: bayespare VERB" in said.out
    assert "say what to do: fit, pick" in said.error


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_every_key_with_its_default(cli: Caller, verb: str) -> None:
    said = cli(verb, "--help")
    assert (said.code, said.err) == (0, "")
    for key, field in VERBS[verb].keys.model_fields.items():
        assert f"  {key}=" in said.out
        assert field.description
    assert max(map(len, said.out.splitlines())) <= 100
    assert cli("help", verb).out == said.out
    assert set(cli(verb, "--help", "--json").json["keys"]) == set(VERBS[verb].keys.model_fields)


def test_help_and_version(cli: Caller) -> None:
    assert all(f"  {verb} " in cli("--help").out for verb in VERBS)
    assert cli("--version").out.strip() == bayespare.__version__
    assert cli("--version", "--json").json == {"version": bayespare.__version__}


def test_config_prints_a_file_that_means_the_defaults(cli: Caller) -> None:
    text = cli("config").out
    file = Path("keys.yaml")
    file.write_text(text, encoding="utf-8")
    assert read_keys(FitKeys, [f"cfg={file}"], "fit").model_copy(update={"cfg": None}) == FitKeys()
    assert set(cli("config", "--json").json) == set(FitKeys.model_fields)


def test_values_survive_a_round_trip_through_json() -> None:
    """As config.json holds them."""
    keys = read_keys(FitKeys, ["keep=a,b", "time=10m", "sparsity=0.5", "lr=0.01"], "fit")
    stored = json.loads(keys.model_dump_json())
    again = make_keys(FitKeys, {key: Given(value) for key, value in stored.items()})
    assert again == keys


def test_a_file_of_keys_and_words_that_override_it(cli: Caller, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("# mine\nepochs: 1e2  # many\n\nnet: mlp:40,4\nname: 'a # b'\nseed:\n")
    keys = read_keys(FitKeys, [f"cfg={file}", "epochs=3"], "fit")
    assert (keys.epochs, keys.net, keys.seed) == (3, "mlp:40,4", 0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("epochs: 3\nepoch: 4\n", "line 2: unknown key 'epoch' (did you mean 'epochs'?)"),
        ("epochs 3\n", "line 1: 'epochs 3' is not of the form key: value"),
        ("\nepochs: x\n", "line 2: epochs=x: must be a whole number"),
        ("seed: 1\nseed: 1\n", "line 2: seed is given twice"),
        ("cfg: other.yaml\n", "line 1: cfg cannot name another file"),
    ],
)
def test_a_wrong_line_is_named(cli: Caller, tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "my.yaml").write_text(text)
    said = cli("fit", "cfg=my.yaml", "data=digits")
    assert said.code == 2
    assert f"my.yaml {complaint}" in said.error


def test_an_unexpected_failure_is_one_line_with_a_place_to_look(
    cli: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a mistake\nof ours")

    monkeypatch.setattr("bayespare.cli.help.config_text", broken)
    monkeypatch.setattr("bayespare.cli.config.config_text", broken)
    said = cli("config")
    assert said.code == 1
    assert said.error.startswith("internal error: ZeroDivisionError: a mistake of ours (details: ")
    with open(said.error.rpartition("details: ")[2].rstrip(")")) as file:
        assert "Traceback" in file.read()
    loud = cli("config", "--traceback")
    assert "Traceback" in loud.err


def test_json_is_alone_on_standard_output(cli: Caller) -> None:
    said = cli("config", "--json")
    assert json.loads(said.out)
    assert said.out.count("\n{") == 0
