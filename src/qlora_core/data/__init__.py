"""Files to validated rows to a split, with a report of everything that was read, joined, repaired and refused.

    sources ─► tables ─► shapes ───┐
       └─► documents ─► passages ──┴─► reading ─► assembly ─► prepared
                                                  (duplicates, splits)

`sources` finds the files and sorts them by the user's own split; `text_files` unpacks and decodes them. `tables` (with
`json_values`) turns a file into rows, `nested` a value of several rows into these. `shapes` recognises each row by the
names in `columns` and `published`, `known_row` assembles it, with `turns` for conversations and `options` for multiple
choice; `threads` joins messages that stand one a row.

`documents` finds title and blocks, `passages` cuts them so that they read well, `cleaning` repairs every text. In text
that has only lines, `structure` recovers the layout: `page_debris`, `title_page`, `chapter_headings` and `paragraphs`
mark or join `book_lines` (with `numerals` and `heads`). Before, `chatter` removes remarks to a chat program, `scans`
repairs what scanning broke, and `tabular` turns tables into sentences. `subjects` finds the person or thing that a
question asks about, `copies` the sources that hold the same text. The report lists every guess, and the setting
`decide` (`decisions`) overrides it.

`reading` does all that for one file (a `units.Unit`), in this process or another; `assembly` puts the parts together,
and `preparation` decides what is read, and whether it was read before. Bad input is reported with file and line, never
raised, and the sources are never written to. No part knows mlx; the only part of a model used is its tokeniser, which
measures passages.
"""

from .decisions import flag
from .preparation import prepare
from .prepared import PreparedData, Rows, no_data, save_rendered
from .records import Findings, Rejected, texts_of
from .report import MOST_LOST, DataReport, Unused
from .shapes import ACCEPTED
from .sources import FACTS_FILE, REPORT_FILE, TRAIN_FILE, VAL_FILE
from .splits import split

__all__ = [
    "ACCEPTED",
    "FACTS_FILE",
    "MOST_LOST",
    "REPORT_FILE",
    "TRAIN_FILE",
    "VAL_FILE",
    "DataReport",
    "Findings",
    "PreparedData",
    "Rejected",
    "Rows",
    "Unused",
    "flag",
    "no_data",
    "prepare",
    "save_rendered",
    "split",
    "texts_of",
]
