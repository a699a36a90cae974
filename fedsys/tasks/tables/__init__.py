"""Tables as people have them: read strictly, each column of a kind that its cells bear out.

`file` reads a CSV or parquet file without guessing at what cells mean; `cells` turns one column
into text, numbers or days and names the cell where that fails; `missing` says what an unmeasured
cell looks like and becomes; `columns` encodes rows by a declaration; `inference` writes such a
declaration from the rows themselves; `options` reads one from ``[task.options]``; `reading` is
what was read, for people.
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
