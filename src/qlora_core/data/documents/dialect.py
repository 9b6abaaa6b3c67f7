"""Markdown as people write it, for markdown-it: formulas, wiki links, hidden comments, notes, and marks that are text.

CommonMark takes 5*3*2 for emphasis, `List<Tide>` for HTML and `[Ana]: yes` for the address of a link.
"""

from __future__ import annotations

import re
from typing import Any

_FORMULA = re.compile(
    r"\$\$.+?\$\$"  # on lines of its own or not
    r"|\$(?![\s$])(?:[^$\\\n]|\\.|\n(?!\s*\n))*?(?<!\s)\$(?!\d)"  # $5 and $6 are prices
    r"|\\\((?=[^)]*[\\^_=+*<>|])(?:[^\n]|\n(?!\n))+?\\\)|\\\[(?=[^]]*[\\^_=+*<>|])(?:[^\n]|\n(?!\n))+?\\\]",
    re.DOTALL,
)
_WIKI_LINK = re.compile(r"(!?)\[\[([^\[\]\n]+)\]\]")
_COMMENT = re.compile(r"(?<![\w%])%%(?!%)(.+?)(?<!%)%%(?![\w%])", re.DOTALL)
_HIGHLIGHT = re.compile(r"(?<![\w=])==(?=[^\s=])([^\n]*?[^\s=])==(?![\w=])")
_BLOCK_ID = re.compile(r"[^\S\n]*(?<!\S)\^(?!\d{1,3}\s)[A-Za-z0-9-]+[^\S\n]*$", re.MULTILINE)
_CALLOUT = re.compile(r"^((?:[^\S\n]*>)+[^\S\n]*)\[![\w -]+(?:\|[^\]\n]*)?\][+-]?[^\S\n]*", re.MULTILINE)
_CODE = re.compile(  # fences and code between backticks; what is inside says what it says
    r"^(?P<quote>[ >]{0,12})(?P<fence>`{3,}|~{3,})[^\n]*(?:\n.*?(?:^[ >]{0,12}(?P=fence)[`~]*[^\S\n]*$|\Z)|\Z)"
    r"|(?P<ticks>`+)(?!`)(?:[^\n]|\n(?!\n))+?(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE | re.DOTALL,
)
_NOTE = re.compile(r"^ {0,3}\[\^([^\]\s]+)\]:", re.MULTILINE)
_NOTE_MARK = re.compile(r"\[\^([^\]\s]+)\](:?)")
_ADDRESS = re.compile(r" {0,3}\[[^\]\n]+\]:\s*(?:<[^>\n]*>|\S*[/.#:@]\S*|$)")
_DUNDER = re.compile(
    r"__(?:init|main|name|file|str|repr|call|dict|class|doc|all|enter|exit|iter|next|len|getitem|setitem|delitem|new|"
    r"del|slots|version|hash|eq|ne|lt|le|gt|ge|add|sub|mul|contains|getattr|setattr|annotations|future|import)__"
)


_PROPERTIES = re.compile(r"(?:[^\S\n]*\n)*(?:[A-Za-z][\w-]*:: [^\n]*(?:\n|\Z))+")
_PROPERTY = re.compile(r"^([A-Za-z][\w-]*):: ([^\n]*)$", re.MULTILINE)
_PLUMBING = re.compile(  # Logseq's, which it does not show
    r"^[^\S\n]*(?:- )?(?:id|collapsed|created-at|updated-at|heading|background-color|query-[\w-]+|logseq\.[\w.-]+)::"
    r"[^\n]*$|[^\S\n]*\(\([0-9a-f]{8}-[0-9a-f-]{27}\)\)|\{\{(?:query|embed|renderer|video|cards|namespace)\b[^\n]*?\}\}",
    re.MULTILINE,
)
_QUERY = re.compile(r"[ >]*(?:`{3,}|~{3,})[^\S\n]*(?:dataview|dataviewjs|tasks|query|button)[^\S\n]*\n")
"""The beginning of a fence that a program of notes replaces by what it finds."""


def page_properties(text: str) -> tuple[dict[str, str], str]:
    """Return the properties at the top of a page of Logseq (`title:: …`), and the text with empty lines for them."""
    match = _PROPERTIES.match(text)
    if not match:
        return {}, text
    return dict(_PROPERTY.findall(match[0])), "\n" * match[0].count("\n") + text[match.end() :]


def without_hidden(text: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Return a note without what only its own program shows, and what was removed: place, reason and beginning.

    Comments between %% and %%, block names (^id), callout marks, queries, and Logseq's ids and references are removed,
    except in code; lines keep their numbers.
    """
    found: list[tuple[str, str, str]] = []
    kept: list[str] = []
    comment = re.compile(f"{_CODE.pattern}|(?P<comment>{_COMMENT.pattern})", re.MULTILINE | re.DOTALL)
    if "%%" in text:
        start = 0
        for match in comment.finditer(text):
            if match["comment"] is not None:
                line = str(text.count("\n", 0, match.start()) + 1)
                found.append((line, "hidden comment", match["comment"].strip("% \n")))
                kept += [text[start : match.start()], "\n" * match["comment"].count("\n")]
                start = match.end()
        text = "".join([*kept, text[start:]])
    pieces, start = [], 0
    for match in _CODE.finditer(text):
        query = bool(_QUERY.match(match[0]))
        if query:
            found.append((str(text.count("\n", 0, match.start()) + 1), "a query of notes", match[0].strip("`~ \n")))
        pieces += [_plain_notes(text[start : match.start()]), "\n" * match[0].count("\n") if query else match[0]]
        start = match.end()
    return "".join([*pieces, _plain_notes(text[start:])]), found


def _plain_notes(text: str) -> str:
    text = _PLUMBING.sub("", text) if "::" in text or "((" in text or "{{" in text else text
    return _BLOCK_ID.sub("", _CALLOUT.sub(r"\1", text))


def extend(parser: Any, text: str) -> None:
    """Add the dialect to a markdown-it parser; `text` is what it will read, for the notes defined in it."""
    notes = frozenset(_NOTE.findall(text))

    def literal(state: Any, content: str, length: int, silent: bool) -> bool:
        if not silent:
            state.push("text", "", 0).content = content
        state.pos += length
        return True

    def formula(state: Any, silent: bool) -> bool:
        match = _FORMULA.match(state.src, state.pos) if state.src[state.pos] in "$\\" else None
        return bool(match) and literal(state, match[0], len(match[0]), silent)

    def wiki_link(state: Any, silent: bool) -> bool:
        match = _WIKI_LINK.match(state.src, state.pos) if state.src[state.pos] in "![" else None
        return bool(match) and literal(state, "" if match[1] else _shown(match[2]), len(match[0]), silent)

    def note(state: Any, silent: bool) -> bool:
        match = _NOTE_MARK.match(state.src, state.pos) if state.src[state.pos] == "[" else None
        if not match or match[1] not in notes:
            return False
        begins = not state.src[: state.pos].strip()  # the note itself, whose mark has a colon
        return literal(state, "", len(match[0]) - (not begins and bool(match[2])), silent)

    def highlight(state: Any, silent: bool) -> bool:
        match = _HIGHLIGHT.match(state.src, state.pos) if state.src[state.pos] == "=" else None
        return bool(match) and literal(state, match[1], len(match[0]), silent)

    rules = parser.inline.ruler
    for name, rule in (("formula", formula), ("wiki_link", wiki_link), ("note", note), ("highlight", highlight)):
        rules.before("escape", name, rule)
    rules.at("emphasis", _emphasis)
    parser.block.ruler.at("reference", _address)
    parser.block.ruler.before("fence", "formula", _formula_block, {"alt": ["paragraph", "reference", "blockquote"]})


def _shown(link: str) -> str:
    """Return the visible text of a wiki link: its alias, or the page and heading that it links to."""
    target, _, shown = link.replace("\\|", "|").partition("|")
    if shown.strip():
        return shown.strip()
    page, *inside = (part.strip() for part in target.split("#"))
    return " > ".join(part for part in (page.partition("^")[0], *inside) if part and part[0] != "^")


def _emphasis(state: Any, silent: bool) -> bool:
    """Parse emphasis like CommonMark, except that a star between letters or digits is a star, as in 5*3*2."""
    from markdown_it.rules_inline.state_inline import Delimiter

    marker, start = state.src[state.pos], state.pos
    if silent or marker not in "*_":
        return False
    if marker == "_" and (name := _DUNDER.match(state.src, start)):
        state.push("text", "", 0).content = name[0]
        state.pos = name.end()
        return True
    end = start + len(re.match(re.escape(marker) + "+", state.src[start:])[0])  # type: ignore[index]
    around = state.src[max(start - 1, 0) : start] + state.src[end : end + 1]
    within = len(around) == 2 and around.isalnum() and all(letter < "\u0e00" for letter in around)
    scanned = state.scanDelims(start, marker == "*" and not within)
    for _ in range(scanned.length):
        state.push("text", "", 0).content = marker
        state.delimiters.append(
            Delimiter(ord(marker), scanned.length, len(state.tokens) - 1, -1, scanned.can_open, scanned.can_close)
        )
    state.pos += scanned.length
    return True


def _address(state: Any, line: int, last: int, silent: bool) -> bool:
    """Parse a link's address, unless the line is somebody's name and words."""
    from markdown_it.rules_block import reference

    text = state.src[state.bMarks[line] : state.eMarks[line]]
    return bool(_ADDRESS.match(text)) and reference(state, line, last, silent)


def _formula_block(state: Any, line: int, last: int, silent: bool) -> bool:
    r"""Parse a display formula from $$ to $$, \[ to \] or \begin to \end; it contains no list and no heading."""
    text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip()
    begun = re.match(r"\$\$|\\\[|\\begin\{(\w+\*?)\}", text)
    if not begun or state.is_code_block(line):
        return False
    closing = {"$$": "$$", "\\[": "\\]"}.get(begun[0], f"\\end{{{begun[1]}}}")
    for end in range(line, last):
        row = state.src[state.bMarks[end] : state.eMarks[end]].rstrip()
        if (not row.strip() and begun[0] != "$$") or state.sCount[end] < state.blkIndent:
            return False
        if row.endswith(closing) and (end > line or len(text) > len(begun[0]) + len(closing)):
            break
    else:
        return False
    if not silent:
        token = state.push("code_block", "code", 0)
        token.content = state.getLines(line, end + 1, state.blkIndent, False)
        token.map = [line, end + 1]
        state.line = end + 1
    return True
