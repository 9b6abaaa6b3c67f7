"""Documents from files of prose: a title, and blocks or lines. Knows nothing of rows or passages.

Markdown, HTML, EPUB, Word, OpenDocument, rich text and LaTeX are fed to an `Outline` in terms of HTML; plain text and
PDF have only lines.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator

from ..encoding import decode
from ..records import Document
from .code import CODE, read_code
from .epub import read_epub
from .latex import read_latex
from .markdown import read_markdown
from .notebook import read_notebook
from .opendocument import read_opendocument
from .outline import UnreadableError, one_line
from .plain import read_pdf, read_text
from .rtf import read_rtf
from .subtitles import read_subtitles
from .web import read_html
from .word import read_word


def read_document(suffix: str, content: bytes) -> Document:
    """Read the document in a file of `suffix` (one of `SUFFIXES`, in either case).

    Raises:
        ValueError: why there is none, in one plain line: it holds no text, is locked, damaged, …
    """
    suffix = suffix.lower()
    reader = read_code if suffix in CODE else _READERS.get(suffix)
    if reader is None:
        raise ValueError(f"{suffix or 'a file without a suffix'} is none of {', '.join(SUFFIXES)}")
    try:
        with _quiet():
            return reader(content)
    except UnreadableError as error:
        raise ValueError(one_line(str(error))) from None
    except ImportError:
        raise ValueError(f"a {suffix} file needs the extra `formats`: uv sync --extra formats") from None
    except RecursionError:
        raise ValueError(f"cannot be read as {suffix}: it is nested too deeply") from None
    except MemoryError:
        raise ValueError(f"cannot be read as {suffix}: it needs more memory than there is") from None
    except Exception as error:  # damage makes the libraries raise anything
        reason = re.sub(r"'?<[^<>]* at 0x\w+>'?", "it", one_line(str(error)).strip("'\"")) or type(error).__name__
        raise ValueError(f"cannot be read as {suffix}: {reason[:200]}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of bs4 and the log of pypdf."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


MARKDOWN = (".md", ".markdown")
HTML = (".html", ".htm", ".xhtml")
_READERS: dict[str, Callable[[bytes], Document]] = {
    **dict.fromkeys(MARKDOWN, read_markdown),
    ".txt": read_text,
    **dict.fromkeys(HTML, read_html),
    ".docx": read_word,
    ".odt": read_opendocument,
    ".rtf": read_rtf,
    ".tex": read_latex,
    ".pdf": read_pdf,
    ".epub": read_epub,
    ".srt": lambda content: read_subtitles(decode(content)[0]),
    ".vtt": lambda content: read_subtitles(decode(content)[0]),
    ".ipynb": read_notebook,
}
SEVERAL = (".eml", ".mbox", ".apkg", ".colpkg")
"""Suffixes of files that hold several documents or notes, which `recognised` reads."""

SUFFIXES = tuple(_READERS)
