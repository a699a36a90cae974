"""Files as people have them: encodings, separators, headers, quotes, rows of another length."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from fedsys.errors import ConfigError, DataError
from fedsys.tasks import load
from fedsys.tasks.tables.cells import Place
from fedsys.tasks.tables.file import Format, open_table
from tests.fedsys.tasks.tables.conftest import Read, people

SMALL = "größe,stadt,y\n" + "".join(f"{k},{('Köln', 'Bonn')[k % 2]},{k % 2}\n" for k in range(20))


def rows_of(data: Any) -> int:
    return len(data.train) + len(data.test)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_says_the_encoding(read: Read, encoding: str) -> None:
    data, reading = read(SMALL.encode(encoding))
    assert rows_of(data) == 20
    assert [each.name for each in reading.columns] == ["größe", "stadt"]
    assert set(reading.columns[1].counts) == {"Köln", "Bonn"}
    assert reading.described.endswith("utf-16" if encoding == "utf-16" else "utf-8")


def test_a_byte_order_mark_before_the_label_is_no_part_of_its_name(read: Read) -> None:
    data, _ = read(b"\xef\xbb\xbf" + b"y,x\n" + b"0,1\n1,2\n" * 10)
    assert rows_of(data) == 20


@pytest.mark.parametrize(("bad", "line"), [(SMALL, 1), (SMALL.replace("größe", "g", 1), 2)])
def test_an_encoding_that_only_rows_could_say_is_asked_for(read: Read, bad: str, line: int) -> None:
    with pytest.raises(DataError, match=f"line {line} is not utf-8; say how .* 'latin-1'"):
        read(bad.encode("latin-1"))
    data, reading = read(bad.encode("latin-1"), encoding="latin-1")
    assert set(reading.columns[1].counts) == {"Köln", "Bonn"}
    assert rows_of(data) == 20


def test_late_bytes_of_another_encoding_are_found(tmp_path: Path) -> None:
    text = "x,y\n" + "1,a\n" * 200_000
    (tmp_path / "t.csv").write_bytes(text.encode() + "2,Köln\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 200002 is not utf-8"):
        open_table(Place(tmp_path / "t.csv"), Format())


@pytest.mark.parametrize(
    ("delimiter", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")]
)
def test_the_header_says_what_separates(read: Read, delimiter: str, word: str) -> None:
    data, reading = read(people().replace(",", delimiter))
    assert rows_of(data) == 40
    assert word in reading.described


def test_a_header_with_two_separators_is_asked_about(read: Read) -> None:
    text = people().replace("age,", '"age; years",').replace('"age; years"', "age; years", 1)
    with pytest.raises(DataError, match="its header has commas and semicolons; say which"):
        read(text)
    data, _ = read(text, delimiter=",")
    assert rows_of(data) == 40
    quoted, _ = read(people().replace("age,", '"age; years",', 1))
    assert rows_of(quoted) == 40


def test_a_tsv_and_endings_in_capitals(read: Read) -> None:
    assert rows_of(read(people().replace(",", "\t"), name="T.TSV")[0]) == 40
    assert rows_of(read(people(), name="T.CSV")[0]) == 40


def test_semicolons_with_decimal_commas(read: Read) -> None:
    text = "x;z;y\n" + "".join(f"0,{k};{k},25;{k % 2}\n" for k in range(10, 40))
    data, reading = read(text, scaling="none")
    assert "semicolons" in reading.described
    assert sorted(data.train.x[:, 0].tolist() + data.test.x[:, 0].tolist())[0] == pytest.approx(0.1)
    assert reading.columns[1].low == 10.25


def test_a_comma_that_could_be_either_is_asked_about(read: Read) -> None:
    text = "x;y\n" + "".join(f"{k},{100 + k};{k % 2}\n" for k in range(1, 30))
    with pytest.raises(DataError, match=r"'1,101' is not a number as it is written; say decimal"):
        read(text)
    assert read(text, decimal=",")[1].columns[0].low == pytest.approx(1.101)
    assert read(text, thousands=",")[1].columns[0].low == 1101.0


def test_thousands_with_decimals(read: Read) -> None:
    text = "x,y\n" + "".join(f'"{k},000.5",{k % 2}\n' for k in range(1, 30))
    with pytest.raises(DataError, match=r"'1,000.5' is not a number as .*; say thousands = ','"):
        read(text)
    assert read(text, thousands=",")[1].columns[0].low == 1000.5
    with pytest.raises(DataError, match=r"row 31: '1,00,0' is not a number"):
        read(text + '2,1\n"1,00,0",1\n', thousands=",")


def test_line_breaks_and_separators_within_quotes(read: Read) -> None:
    text = "note,x,y\n" + "".join(f'"one, line\nand ""two""",{k},{k % 2}\n' for k in range(20))
    data, reading = read(text)
    assert rows_of(data) == 20
    assert list(reading.columns[0].counts) == ['one, line\nand "two"']
    assert not any("\n" in line for line in reading.lines())


def test_a_quote_that_is_never_closed_swallows_nothing(read: Read) -> None:
    lines = people().splitlines()
    lines[3] = lines[3].replace("yes", '"yes').replace("no", '"no')
    with pytest.raises(DataError, match="row 3 is never closed"):
        read("\n".join(lines) + "\n")
    lines = people().splitlines()
    lines[3] = '"' + lines[3]
    with pytest.raises(DataError):
        read("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; a header and rows are needed"),
        ("\n\n", "its first line is empty"),
        ("x,y\n", "0 rows; at least 2 are needed"),
        ("x,x,y\n1,2,0\n", "column 'x' appears twice, as columns 1 and 2"),
        ("x, x,y\n1,2,0\n", "column 'x' appears twice"),
        ("y,x,y\n1,2,0\n", "column 'y' appears twice, as columns 1 and 3"),
        (",,y\n1,2,0\n", "column without a name appears twice"),
        ("1,2,3\n4,5,6\n", "its first line holds numbers alone"),
        ("x,y\n1,0\n2,1,7\n", r"row 2 has 3 cells where the header has 2: '2,1,7'"),
        ("x,y\n1,0\n2\n", "row 2 has 1 cells where the header has 2"),
        ('x,"y\n1,0\n', "its header has a quotation mark that is not closed"),
        ("x" * 200_000 + "\n1\n", "its header cannot be read: field larger than"),
        ("x,y\n1,0\n".encode("utf-16-le"), "its header has zero bytes"),
    ],
)
def test_a_file_that_cannot_be_is_explained(read: Read, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(content)


def test_the_same_name_in_two_unicode_forms_is_one_name(read: Read) -> None:
    decomposed = "gro\u0308\u00dfe"
    text = f"{decomposed},y\n" + "".join(f"{k},{k % 2}\n" for k in range(20))
    assert read(text, ignore=[])[1].columns[0].name == "gr\u00f6\u00dfe"
    declared = {"classes": ["0", "1"], "ranges": {"gr\u00f6\u00dfe": [0, 20]}}
    assert rows_of(read(text, **declared)[0]) == 20


def test_names_with_spaces_around(read: Read) -> None:
    data, _ = read(" x , y \n" + "".join(f" {k} , {k % 2} \n" for k in range(20)))
    assert rows_of(data) == 20


def test_row_numbers_of_pandas_are_left_out_and_said(read: Read) -> None:
    rows = [f"{k},{k % 7},{k % 2}\n" for k in range(30)]
    _, reading = read(",x,y\n" + "".join(rows))
    assert [each.name for each in reading.columns] == ["x"]
    assert any("counts rows and was left out" in note for note in reading.notes)
    random.Random(0).shuffle(rows)
    with pytest.raises(DataError, match="a column has no name; give it one"):
        read(",x,y\n" + "".join(rows))
    assert len(read(",x,y\n" + "".join(rows), ignore=[""])[1].columns) == 1


def test_types_of_parquet(read: Read) -> None:
    n = 20
    x = [k / 4 for k in range(n)]
    for y in (
        pyarrow.array(["ab"[k % 2] for k in range(n)]).dictionary_encode(),
        pyarrow.array([b"ab"[k % 2 :][:1] for k in range(n)]),
        pyarrow.array([bool(k % 2) for k in range(n)]),
        pyarrow.array([k % 2 for k in range(n)], pyarrow.uint8()),
        pyarrow.array([float(k % 2) for k in range(n)], pyarrow.float32()),
    ):
        assert len(read({"x": x, "y": y})[1].classes) == 2
    reading = read({"x": pyarrow.array(x, pyarrow.float16()), "y": [k % 2 for k in range(n)]})[1]
    assert (reading.columns[0].low, reading.columns[0].high) == (0.0, 4.75)


def test_structs_are_taken_by_field_and_lists_are_refused(read: Read) -> None:
    n = 20
    x, y = list(range(n)), [k % 2 for k in range(n)]
    struct = pyarrow.array([{"id": k, "name": "ab"[k]} for k in y])
    with pytest.raises(DataError, match=r"has no column 'y'; it has x, y\.id, y\.name"):
        read({"x": x, "y": struct})
    assert len(read({"x": x, "y": struct}, label="y.name", ignore=["y.id"])[1].classes) == 2
    declared = {"classes": ["a", "b"], "ranges": {"x": [0, 20]}}
    assert len(read({"x": x, "y": struct}, label="y.name", **declared)[1].classes) == 2
    with pytest.raises(DataError, match=r"column 'z' is list<.*leave it out with"):
        read({"x": x, "z": [[k] for k in x], "y": y})
    with pytest.raises(DataError, match="column 'y' holds lists; say target = 'labels'"):
        read({"x": x, "y": [[k] for k in y]})
    with pytest.raises(DataError, match=r"column 'who' holds list<.*cannot name a client"):
        read({"x": x, "who": [[k] for k in x], "y": y}, client="who")
    twice = pyarrow.table([x, x, y], names=["x", "x", "y"])
    with pytest.raises(DataError, match="column 'x' appears twice"):
        read(twice)


def test_a_device_quotes_nothing_of_its_file(read: Read) -> None:
    declared = {
        "classes": ["no", "yes"],
        "ranges": {"age": [0, 100]},
        "values": {"city": ["Bonn", "Oslo"]},
    }
    for text in (
        people(extra="SECRET,Bonn,no\n"),
        people(extra="31,SECRET,no\n"),
        people(extra="31,Bonn,SECRET\n"),
        people(extra="31,SECRET\n"),
        people(extra="31,Bonn,SECRET,4\n"),
        people(extra='31,"SECRET,no\n'),
        people(extra=",SECRET,no\n"),
    ):
        for private in (True, False):
            with pytest.raises(DataError) as refused:
                read(text, private=private, **declared)
            assert not private or "SECRET" not in str(refused.value)
            assert "t.csv" in str(refused.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"delimiter": ":"}, "delimiter = ':': allowed are"),
        ({"encoding": "latin1"}, r"encoding = 'latin1': allowed are .*did you mean latin-1"),
        ({"decimal": ";"}, "decimal = ';'"),
        ({"thousands": "."}, "thousands = '.'"),
    ],
)
def test_a_format_that_cannot_be_is_explained(option: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("tabular", {"path": "t.csv", "label": "y", **option})
