"""The page: what the notebooks in `apps/` show, one module a part of it.

Knows marimo and altair and nothing of mlx: whatever needs it is a worker or a command in a process of its own.

    language   whose words; how the page was opened
    steps      which part of a notebook is seen at once
    look       headings, tables, cards, notes: where text becomes HTML
    problems   what went wrong, shown once and handed on
    forms      flags and settings
    rows       the data: where it comes from, what became of it, its tokens in numbers
    doubts     what was guessed in it, and the answers
    row_browser  one row after another, as its tokens
    machine    what it is trained on
    model      the base, and what the settings come to
    watching   a run at one moment
    training   buttons, figures, curves, the log
    composing  writing a question
    asking     questions to base and tuned model
    results    what a run that ended leaves
    verdict    whether training helped
    exporting  taking it elsewhere
    keeping    names and notes of runs; settings to take along
    comparing  runs side by side
    navigation from one notebook to the others
"""

from . import asking as asking
from . import bar as bar
from . import commands as commands
from . import comparing as comparing
from . import composing as composing
from . import doubts as doubts
from . import exporting as exporting
from . import forms as forms
from . import keeping as keeping
from . import language as language
from . import look as look
from . import machine as machine
from . import model as model
from . import navigation as navigation
from . import problems as problems
from . import results as results
from . import row_browser as row_browser
from . import rows as rows
from . import source as source
from . import steps as steps
from . import training as training
from . import verdict as verdict
from . import watching as watching
from .look import remark as remark
from .look import section as section
from .look import title as title
from .problems import attempt as attempt
from .problems import complain as complain
from .problems import scripted as scripted
from .problems import view as view
