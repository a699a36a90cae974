"""Tables as found in practice, read strictly: each column is of a kind that its cells support.

`file` reads a CSV or parquet file without guessing what cells mean; `cells` turns one column into
text, numbers or days and names the cell where that fails; `missing` says what a missing value looks
like and becomes; `columns` encodes rows by a declaration; `inference` derives such a declaration
from the rows; `options` reads one from ``[task.options]``; `reading` describes what was read, for
people.
"""

from fedsys.tasks.tables.columns import Columns, Prepared
from fedsys.tasks.tables.file import Format, TableFile, open_table
from fedsys.tasks.tables.inference import inferred
from fedsys.tasks.tables.options import TableOptions

__all__ = [
    "Columns",
    "Format",
    "Prepared",
    "TableFile",
    "TableOptions",
    "inferred",
    "open_table",
]
