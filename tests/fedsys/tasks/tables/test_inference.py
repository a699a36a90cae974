"""Kinds of columns where rows bear them out, questions where they do not; ids are text."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsys.errors import DataError
from fedsys.tasks.tables.texts import alike, ordered
from tests.fedsys.tasks.tables.conftest import Read, people


def labelled(labels: list[object], header: str = "x,y") -> str:
    return header + "\n" + "".join(f"{k % 11},{label}\n" for k, label in enumerate(labels))


def of_clients(ids: list[object]) -> str:
    return "who,x,y\n" + "".join(f"{who},{k},{k % 2}\n" for k, who in enumerate(ids))


@pytest.mark.parametrize(
    "ids",
    [
        [f"{k:03d}" for k in range(24)],
        [f"{k}.0" if k % 3 else f"{k}" for k in range(24)],
        [2**53 + k for k in range(24)],
        [f"{10**19 + k}" for k in range(24)],
        [f"1225717802.{10**9 + k}" for k in range(24)],
        [f"0x{k:x}" for k in range(24)],
        [f"{k}e5" for k in range(24)],
        ["TRUE", "true", "1", "01", "1.0", "nan2", *range(100, 118)],
    ],
)
def test_client_ids_are_text(read: Read, ids: list[object]) -> None:
    data, reading = read(of_clients([each for each in ids for _ in range(5)]), client="who")
    assert reading.clients == 24
    assert sorted(data.client_names) == sorted(map(str, ids))
    assert data.natural is not None
    assert sorted(set(data.natural.tolist())) == list(range(24))


def test_ids_of_parquet(read: Read) -> None:
    n = 40
    x, y = list(range(n)), [k % 2 for k in range(n)]
    wide = pyarrow.array([2**63 + k % 8 for k in range(n)], pyarrow.uint64())
    assert read({"x": x, "y": y, "who": wide}, client="who")[1].clients == 8
    half = [float(k % 8) for k in range(n)]
    assert read({"x": x, "y": y, "who": half}, client="who")[0].client_names[3] == "3"
    with pytest.raises(DataError, match=r"column 'who'.*beyond 2\^53"):
        read({"x": x, "y": y, "who": [1e17 + 64 * k for k in range(n)]}, client="who")
    with pytest.raises(DataError, match="column 'who', row 1: the cell is empty"):
        read({"x": x, "y": y, "who": [None, *half[1:]]}, client="who")
    with pytest.raises(DataError, match="column 'who', row 2: the cell is empty"):
        read({"x": x, "y": y, "who": [1.0, float("nan"), *half[2:]]}, client="who")


def test_ids_that_are_one_number_written_twice_are_noted(read: Read) -> None:
    _, reading = read(of_clients(["7", "7.0", "8"] * 10), client="who")
    assert reading.clients == 3
    assert "'7' and '7.0' differ only in how a number is written" in reading.notes[0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text("0123456789.e+-", min_size=1, max_size=12), min_size=2, max_size=30, unique=True
    )
)
def test_distinct_ids_stay_distinct(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    from fedsys.tasks import DataSource, load
    from fedsys.tasks.tables.cells import MARKS

    ids = [each for each in ids if each not in MARKS] + ["a", "b"]
    path = tmp_path_factory.mktemp("ids") / "t.csv"
    path.write_text(of_clients([each for each in ids for _ in range(3)]))
    task = load("tabular", {"path": str(path), "label": "y", "client": "who"})
    assert set(task.clients(DataSource()).client_names) == set(ids)


@pytest.mark.parametrize("cell", ["?", "12O", "n.a.", "1 2", "−5", "0x1F", "1e", "inf", "NaN"])
def test_a_number_but_for_a_few_cells_is_a_number_with_bad_cells(read: Read, cell: str) -> None:
    text = people().replace("\n36,", f'\n"{cell}",')
    with pytest.raises(DataError) as refused:
        read(text)
    assert f"column 'age', row 17: '{cell}' is not a number; say missing = ['{cell}']" in str(
        refused.value
    )
    _, reading = read(text, missing=[cell], when_missing="drop")
    assert dict(reading.dropped) == {"age": 1}
    assert reading.columns[0].kind == "number"


def test_marks_alone_do_not_make_a_number_a_text(read: Read) -> None:
    """Of UCI's heart disease, two thirds of `ca` are question marks."""
    text = "ca,y\n" + "".join(f"{'?' if k % 3 else k},{k % 2}\n" for k in range(90))
    with pytest.raises(DataError, match=r"'ca', row 2: '\?' is not a number \(60 such cells"):
        read(text)


def test_the_last_of_many_rows_counts_too(read: Read) -> None:
    text = "x,y\n" + "".join(f"{k}.5,{k % 2}\n" for k in range(90_000)) + "?,1\n"
    with pytest.raises(DataError, match=r"column 'x', row 90001: '\?' is not a number"):
        read(text)


def test_codes_with_leading_zeros_are_asked_about(read: Read) -> None:
    text = "zip,y\n" + "".join(f"0{1000 + k % 5},{k % 2}\n" for k in range(40))
    with pytest.raises(DataError, match="column 'zip', row 1: '01000' has a leading zero"):
        read(text)
    assert read(text, kinds={"zip": "text"})[1].columns[0].kind == "category"
    assert read(text, kinds={"zip": "number"})[1].columns[0].low == 1000.0


def test_texts_some_of_which_are_numbers_are_texts(read: Read) -> None:
    text = "code,y\n" + "".join(f"{('A1', 'B2', '7')[k % 3]},{k % 2}\n" for k in range(40))
    assert set(read(text)[1].columns[0].counts) == {"A1", "B2", "7"}


@pytest.mark.parametrize("form", ["{}%", "€{}", "{} kg", "({})", "{}.000,5", "$ {}", "{}°"])
def test_numbers_with_a_unit_are_no_categories(read: Read, form: str) -> None:
    text = "x,y\n" + "".join(f'"{form.format(k % 30)}",{k % 2}\n' for k in range(60))
    with pytest.raises(DataError, match="looks like a number with extra text") as refused:
        read(text)
    assert f"column 'x', row 1: '{form.format(0)}'" in str(refused.value)
    assert read(text, kinds={"x": "text"})[1].columns[0].kind == "category"
    few = "x,y\n" + "".join(f'"{form.format(k % 5)}",{k % 2}\n' for k in range(60))
    assert len(read(few)[1].columns[0].counts) == 5


@pytest.mark.parametrize("form", ["{}%", "${}00", "€ {}", "{} kg"])
def test_numbers_with_a_unit_are_no_classes(read: Read, form: str) -> None:
    text = "x,y\n" + "".join(f'{k},"{form.format(k % 30)}"\n' for k in range(60))
    with pytest.raises(DataError, match="looks like a number with extra text") as refused:
        read(text)
    assert f"column 'y', row 1: '{form.format(0)}'" in str(refused.value)
    assert "or say target = 'class'" in str(refused.value)
    assert len(read(text, target="class")[1].classes) == 30
    assert len(read(text, kinds={"y": "text"})[1].classes) == 30
    few = "x,y\n" + "".join(f'{k},"{form.format(k % 3)}"\n' for k in range(60))
    assert len(read(few)[1].classes) == 3


def test_dates_are_no_classes_whatever_the_format_of_the_file(read: Read) -> None:
    days = [dt.date(2024, 1, 1 + k % 28) for k in range(60)]
    rows = "".join(f"{k},{day}\n" for k, day in enumerate(days))
    for content in (f"x,y\n{rows}", {"x": list(range(60)), "y": days}):
        with pytest.raises(DataError, match="'y' holds dates, which cannot be a label"):
            read(content)
        assert len(read(content, target="class")[1].classes) == 28


def test_ids_in_two_unicode_forms_are_noted(read: Read) -> None:
    names = ("Ren\u00e9", "Rene\u0301", "Rene")
    text = "who,x,y\n" + "".join(f"{names[k % 3]},{k},{k % 2}\n" for k in range(30))
    found = read(text, client="who")[1]
    assert any("two Unicode forms of one text" in note for note in found.notes)


def test_wide_integers_are_ids(read: Read) -> None:
    text = "x,y\n" + "".join(f"{2**60 + k},{k % 2}\n" for k in range(40))
    with pytest.raises(DataError, match=r"column 'x', row 1: '\d+' is a whole number beyond 2"):
        read(text)
    with pytest.raises(DataError, match="is a whole number beyond 2"):
        read({"x": [2**60 + k for k in range(40)], "y": [k % 2 for k in range(40)]})
    assert read({"x": [2.0**60 * k for k in range(40)], "y": [k % 2 for k in range(40)]})


def test_numbers_that_float32_cannot_hold(read: Read) -> None:
    text = "x,y\n" + "".join(f"{k}e300,{k % 2}\n" for k in range(40))
    with pytest.raises(DataError, match="column 'x' holds numbers too large"):
        read(text)
    with pytest.raises(DataError, match="column 'x' holds numbers too large"):
        read(text.replace("e300", "e38"), scaling="none")


def test_dates_without_separators_are_asked_about(read: Read) -> None:
    text = "x,y\n" + "".join(f"202401{1 + k % 28:02d},{k % 2}\n" for k in range(40))
    with pytest.raises(DataError, match="'20240101' looks like a date without separators"):
        read(text)
    assert read(text, dates={"x": "%Y%m%d"})[1].columns[0].high == "2024-01-28"
    assert read(text, kinds={"x": "number"})[1].columns[0].kind == "number"


def test_columns_that_programs_add(read: Read) -> None:
    index = {"x": [1.5, 2.5] * 20, "y": [0, 1] * 20, "__index_level_0__": list(range(5, 45))}
    assert [each.name for each in read(index)[1].columns] == ["x"]
    trailing = "x,y,\n" + "".join(f"{k},{k % 2},\n" for k in range(40))
    assert [each.name for each in read(trailing)[1].columns] == ["x"]


def test_truths_are_categories(read: Read) -> None:
    for words in (("true", "false"), ("TRUE", "FALSE"), ("yes", "no"), ("t", "f")):
        text = "smokes,y\n" + "".join(f"{words[k % 2]},{k % 2}\n" for k in range(40))
        assert set(read(text)[1].columns[0].counts) == set(words)
    mixed = "smokes,y\n" + "".join(f"{('True', 'true')[k % 2]},{k % 2}\n" for k in range(40))
    assert any("differ from another only in case" in note for note in read(mixed)[1].notes)


@pytest.mark.parametrize(
    ("labels", "kind", "outputs"),
    [
        ([k % 3 for k in range(60)], "class", 3),
        ([1 + k % 5 for k in range(60)], "class", 5),
        ([(-1, 1)[k % 2] for k in range(60)], "class", 2),
        ([(3, 8)[k % 2] for k in range(60)], "class", 2),
        ([f"{k % 3}.0" for k in range(60)], "class", 3),
        (["low", "high"] * 30, "class", 2),
        ([100_000 + 37 * k for k in range(60)], "number", 1),
        ([0.5 * (1 + k % 10) for k in range(60)], "number", 1),
        ([k / 7 for k in range(60)], "number", 1),
        ([f"{k}e3" for k in range(60)], "number", 1),
    ],
)
def test_what_a_label_is(read: Read, labels: list[object], kind: str, outputs: int) -> None:
    data, reading = read(labelled(labels))
    assert reading.target == kind
    assert data.train.y.is_floating_point() == (kind == "number")
    assert len(reading.classes) == (0 if kind == "number" else outputs)


def test_labels_beyond_what_a_float_holds_are_asked_about(
    read: Read, recwarn: pytest.WarningsRecorder
) -> None:
    beyond: tuple[list[object], ...] = (
        [10**25 + k % 2 for k in range(60)],
        [10**25 * (1 + k % 30) for k in range(60)],
    )
    for labels in beyond:
        text = labelled(labels)
        with pytest.raises(
            DataError, match=r"row 1: '1\d+' is a whole number beyond 2\^53.*'class'"
        ):
            read(text)
        assert len(read(text, target="class")[1].classes) == len(set(labels))
    assert read(labelled([f"{1 + k % 30}e25" for k in range(60)]))[1].target == "number"
    assert not recwarn.list


def test_a_label_that_could_be_either_is_asked_about(read: Read) -> None:
    text = labelled([18 + k % 12 for k in range(120)])
    with pytest.raises(DataError, match="12 different whole numbers from '18' to '29': say target"):
        read(text)
    assert read(text, target="number")[1].target == "number"
    assert len(read(text, target="class")[1].classes) == 12


def test_minus_one_beside_classes_is_asked_about(read: Read) -> None:
    text = labelled([k % 4 - 1 for k in range(80)])
    with pytest.raises(DataError, match=r"row 1: '-1' besides classes 0 to 2 .*20 such rows of 80"):
        read(text)
    _, reading = read(text, missing={"y": ["-1"]}, when_missing="drop")
    assert (len(reading.classes), dict(reading.dropped)) == (3, {"y": 20})
    assert len(read(text, target="class")[1].classes) == 4
    parquet = {"x": list(range(80)), "y": [k % 4 - 1 for k in range(80)]}
    with pytest.raises(DataError, match="row 1: '-1' besides classes 0 to 2"):
        read(parquet)
    assert len(read(parquet, missing={"y": [-1]}, when_missing="drop")[1].classes) == 3


def test_minus_one_in_a_feature_is_noted(read: Read) -> None:
    text = "x,y\n" + "".join(f"{-1 if k % 5 == 0 else k},{k % 2}\n" for k in range(40))
    assert "-1 in 8 rows and nothing else below 0" in read(text)[1].notes[0]


@pytest.mark.parametrize(
    "pair", [("yes", "Yes"), ("<=50K", "<=50K."), ("1", "1.0"), ("a b", "a  b"), ("ﬁn", "fin")]
)
def test_classes_that_differ_in_nothing_are_asked_about(read: Read, pair: tuple[str, str]) -> None:
    text = labelled([(*pair, "2")[k % 3] for k in range(60)])
    with pytest.raises(DataError, match="are two classes that differ only in case") as refused:
        read(text)
    assert all(repr(each) in str(refused.value) for each in pair)
    _, reading = read(text, rename={"y": {pair[1]: pair[0]}})
    assert dict(reading.classes) == {pair[0]: 40, "2": 20}


def test_spaces_around_texts_mean_nothing(read: Read) -> None:
    text = labelled([("yes", "yes ", " no", "no\t")[k % 4] for k in range(60)])
    assert dict(read(text)[1].classes) == {"no": 30, "yes": 30}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "z"}, "has no column 'z'; it has age, city, y"),
        ({"label": "Y"}, "has no column 'Y'"),
        ({"ignore": ["nothing"]}, "has no column 'nothing'"),
        ({"kinds": {"agee": "text"}}, r"has no column 'agee' \(did you mean age\?\)"),
        ({"ignore": ["age", "city"]}, "there is no column to learn from"),
    ],
)
def test_a_column_that_is_not_there(read: Read, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(people(), **options)


def test_a_label_of_one_class_or_none(read: Read) -> None:
    with pytest.raises(DataError, match="column 'y' holds one class only: 'a'"):
        read(labelled(["a"] * 20))
    with pytest.raises(DataError, match="column 'y' holds one class only"):
        read(labelled([1] * 20))
    with pytest.raises(DataError, match="column 'y' has no value in any row"):
        read(labelled([""] * 20))
    with pytest.raises(DataError, match="holds one number only"):
        read(labelled([0.5] * 20), target="number")


def test_empty_and_constant_columns(read: Read) -> None:
    text = "x,z,y\n" + "".join(f"{k},,{k % 2}\n" for k in range(20))
    for treatment in ("refuse", "drop", "category"):
        with pytest.raises(DataError, match="column 'z' has no value in any row; leave it out"):
            read(text, when_missing=treatment)
    _, reading = read(text.replace(",,", ",7,"))
    assert reading.notes == ("column 'z' has the same value in every row",)


def test_dates(read: Read) -> None:
    text = "born,y\n" + "".join(f"19{50 + k % 40}-0{1 + k % 9}-11,{k % 2}\n" for k in range(60))
    _, reading = read(text)
    assert (reading.columns[0].kind, reading.columns[0].low) == ("date", "1950-01-11")
    with pytest.raises(DataError, match="column 'born', row 3: '1952-13-11' is not a date"):
        read(text.replace("1952-03-11", "1952-13-11"))
    with pytest.raises(DataError, match="column 'born', row 3: '1952-02-30' is not a date"):
        read(text.replace("1952-03-11", "1952-02-30"))
    german = "born,y\n" + "".join(f"{1 + k % 28}.3.{1950 + k % 40},{k % 2}\n" for k in range(60))
    with pytest.raises(DataError, match=r"'1\.3\.1950' looks like a date, but .* which part"):
        read(german)
    assert read(german, dates={"born": "%d.%m.%Y"})[1].columns[0].low == "1950-03-01"
    zoned = "at,y\n" + "".join(f"2024-01-01T{k:02d}:00:00+02:00,{k % 2}\n" for k in range(24))
    assert read(zoned)[1].columns[0].low == "2023-12-31"


def test_several_labels(read: Read) -> None:
    lists = {"x": list(range(30)), "y": [["a"], ["a", "b"], []] * 10}
    data, reading = read(lists, target="labels")
    assert dict(reading.classes) == {"a": 20, "b": 10}
    assert data.train.y.shape[1] == 2
    text = "x,y\n" + "".join(f"{k},{('a|b', 'b', 'c')[k % 3]}\n" for k in range(30))
    assert dict(read(text, target="labels", separator="|")[1].classes) == {
        "a": 10,
        "b": 20,
        "c": 10,
    }
    with pytest.raises(DataError, match="say what separates them"):
        read(text, target="labels")
    columns = "x,sick,old\n" + "".join(
        f"{k},{k % 2},{('no', 'yes')[k % 3 == 0]}\n" for k in range(30)
    )
    assert dict(read(columns, label=["sick", "old"])[1].classes) == {"sick": 15, "old": 10}
    with pytest.raises(DataError, match="column 'x', row 3: '2' is neither 0 nor 1"):
        read(columns, label=["sick", "x"])


@pytest.mark.parametrize("many", [True, False])
def test_too_many_classes_or_categories(read: Read, many: bool) -> None:
    if many:
        with pytest.raises(DataError, match="has 1001 different values, more than 1000"):
            read("x,y\n" + "".join(f"{k},c{k}\n" for k in range(1001)))
    else:
        with pytest.raises(DataError, match="column 'n' has 65 different texts, more than 64"):
            read("n,y\n" + "".join(f"name {k},{k % 2}\n" for k in range(65)))


@given(st.text(max_size=20))
def test_what_is_alike_stays_so(text: str) -> None:
    assert alike(text.upper()) == alike(alike(text.upper()))
    assert alike(f"  {text} ") == alike(text)


@given(st.lists(st.integers(-(10**30), 10**30), min_size=1, unique=True))
def test_whole_numbers_are_ordered_by_size(numbers: list[int]) -> None:
    assert ordered([str(each) for each in numbers]) == [str(each) for each in sorted(numbers)]
