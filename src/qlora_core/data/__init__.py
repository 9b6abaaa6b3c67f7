"""Files to validated rows to a split, with a report of everything that was read, joined, mended and refused.

    sources ─► tables ─► shapes ───┐
       └─► documents ─► passages ──┴─► reading ─► assembly ─► prepared
                                                  (duplicates, splits)

`sources` finds files, sorts them by the user's own split and unpacks them; `tables` makes rows of them and `shapes`
recognises each, by the names in `columns`, with `turns` for conversations and `options` for questions of choice;
`threads` joins messages that stand one a row; `documents` finds title and blocks, `passages` cuts them so that they
read well; `cleaning` mends every text. Of a text that only has lines `structure` finds the headings and what belongs
to the page (with `numerals` and `heads`), after `chatter` took out what was said to a chat program, `scans` mended
what scanning broke, and `tabular` made sentences of tables. `subjects` tells whom or what is asked about, `copies`
which sources hold one text. What was guessed is in the report, and the setting `decide` (`decisions`) answers it.
`reading` does all that for one file, in this process or another; `assembly` puts the parts together, and `preparation`
says which, and whether they were read before. Bad input is reported with file and line, never raised, and the sources
are never written to. No part knows mlx; of models only the tokeniser is asked, for the length of a passage.
"""

from .decisions import flag
from .preparation import prepare
from .prepared import PreparedData, Rows, save_rendered
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
    "prepare",
    "save_rendered",
    "split",
    "texts_of",
]
