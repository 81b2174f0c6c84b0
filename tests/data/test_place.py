from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayespare.data.place import Place, hint, one_line, quote, reason


def test_rows_are_counted_as_people_count_them():
    assert str(Place("a.npz")) == "a.npz"
    assert Place("a.npz").row(4) == "a.npz, row 4 (counting from 0)"
    assert Place("a.csv", [2, 5]).row(1) == "a.csv, row 2 (line 5)"


@settings(deadline=None)
@given(st.text())
def test_messages_stay_on_one_short_line(text):
    for line in (one_line(text), quote(text), reason(ValueError(text)), hint(text, [text, "b"])):
        assert len(line.splitlines()) <= 1
        assert len(line) <= 120
    assert reason(ValueError(text))


def test_reason_of_the_system_is_its_own_words():
    with pytest.raises(OSError, match="No such file") as caught:
        Path("/no/such/file").read_text()
    assert reason(caught.value) == "No such file or directory"


def test_hint_lists_few_words_and_names_a_close_one():
    assert hint("zzz", ["a", "b"]) == " (known: a, b)"
    many = [f"name{i}" for i in range(50)]
    assert hint("zzz", many) == ""
    assert hint("nme7", many) == " (did you mean 'name7'?)"
