"""LaTeX (.tex), read into an `Outline`: its text without commands, formulas and code as they are written.

pylatexenc, which also converts it to text, drops verbatim code and does not report line numbers.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..encoding import decode
from ..prose import joint
from ..records import Document
from .outline import Outline, make_document, one_line, titled

_TOKEN = re.compile(
    r"(?P<comment>%[^\n]*(?:\n[ \t]*)?)"
    r"|(?P<paragraph>[ \t]*\n[ \t]*\n\s*)"
    r"|(?P<formula>\$\$.{1,5000}?\$\$|\$(?:[^$\\\n]|\\.|\n(?![ \t]*\n))+\$|\\\(.{1,5000}?\\\)|\\\[.{1,5000}?\\\])"
    r"|\\(?P<word>[a-zA-Z@]+)\*?"
    r"|\\(?P<sign>.)"
    r"|(?P<mark>[{}~&]|---?|``|''|`|,,|<<|>>)"
    r"|(?P<plain>[^%\n\\$&{}~`',<>-]+|.)",
    re.DOTALL,
)
_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", '"': "\u0308", "=": "\u0304", ".": "\u0307",
            "c": "\u0327", "v": "\u030c", "u": "\u0306", "H": "\u030b", "k": "\u0328", "r": "\u030a", "b": "\u0331",
            "d": "\u0323"}  # fmt: skip
_MARKS = {"~": " ", "--": "–", "---": "—", "``": "“", "''": "”", "`": "‘", ",,": "„", "<<": "«", ">>": "»"}
_SYMBOLS = {
    "i": "ı", "j": "ȷ", "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł",
    "aa": "å", "AA": "Å", "S": "§", "P": "¶", "dag": "†", "ddag": "‡", "pounds": "£", "euro": "€", "texteuro": "€",
    "copyright": "©", "ldots": "…", "dots": "…", "textellipsis": "…", "LaTeX": "LaTeX", "TeX": "TeX", "today": "",
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textbar": "|", "textless": "<",
    "textgreater": ">", "textendash": "–", "textemdash": "—", "textquotedblleft": "“", "textquotedblright": "”",
    "textquoteleft": "‘", "textquoteright": "’", "guillemotleft": "«", "guillemotright": "»", "og": "« ", "fg": " »",
    "textordfeminine": "ª", "textordmasculine": "º", "textdegree": "°", "degree": "°", "textbullet": "•",
    "textregistered": "®", "texttrademark": "™", "slash": "/", "textunderscore": "_", "quad": " ", "qquad": " ",
    "newline": "\n", "linebreak": "\n", "par": "\n\n", "textquotesingle": "'",
}  # fmt: skip
_HEADINGS = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph", "subparagraph")
_DROPPED = {  # commands, and how many of their arguments are no text
    "label": 1, "vspace": 1, "hspace": 1, "includegraphics": 1, "usepackage": 1, "documentclass": 1, "setlength": 2,
    "addtolength": 2, "bibliographystyle": 1, "pagestyle": 1, "thispagestyle": 1, "geometry": 1, "color": 1,
    "textcolor": 1, "colorbox": 1, "href": 1, "hypersetup": 1, "addcontentsline": 3, "setcounter": 2, "index": 1,
    "addtocounter": 2, "multicolumn": 2, "multirow": 2, "resizebox": 2, "scalebox": 1, "rule": 2, "phantom": 1,
    "hyphenation": 1, "fontsize": 2, "selectlanguage": 1, "foreignlanguage": 1, "newtheorem": 2, "graphicspath": 1,
    "pagenumbering": 1, "markboth": 2, "markright": 1, "renewcommand": 2, "providecommand": 2, "newcommand": 2,
    "newenvironment": 3, "renewenvironment": 3, "parbox": 1, "raisebox": 1, "cline": 1, "cmidrule": 1, "date": 1,
    "stepcounter": 1, "refstepcounter": 1, "nocite": 1, "glossary": 1, "captionsetup": 1, "numberwithin": 2,
}  # fmt: skip
_REFERENCES = re.compile(r"(?:[a-zA-Z]*cite[a-zA-Z]*|(?:eq|page|auto|name|[cC]|v)?ref)")
_CITATION = re.compile(r"\\[a-zA-Z]*cite")
_OTHER_FILES = ("input", "include", "subfile", "import", "bibliography", "addbibresource", "lstinputlisting")
_PLAIN = re.compile(  # commands that say how something looks, and nothing more
    r"(?:text|math)?(?:bf|it|sc|sf|sl|tt|rm|up|md|normal|superscript|subscript)|em|emph|underline|uline|mbox|fbox|text"
    r"|makebox|framebox|centering|raggedright|raggedleft|noindent|indent|maketitle|tableofcontents|listof\w+|newpage"
    r"|clearpage|cleardoublepage|pagebreak|nopagebreak|(?:small|med|big)skip|vfill|hfill|hrulefill|tiny|scriptsize"
    r"|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|(?:bf|it|sc|sf|sl|tt|rm|up|md)(?:series|shape|family)"
    r"|normalfont|selectfont|url|nolinkurl|path|hline|(?:top|mid|bottom)rule|appendix|frontmatter|mainmatter|backmatter"
    r"|protect|null|relax|bgroup|egroup|begingroup|endgroup|onehalfspacing|doublespacing|singlespacing|sloppy|fussy"
    r"|allowbreak|nobreak|break|xspace|printindex|printbibliography|makeindex|caption|subcaption|enquote|frame"
    r"|frametitle|leavevmode|ignorespaces|strut|smash|makeatletter|makeatother|newblock|and|textnormal"
)
_FORMULAS = re.compile(r"(?:equation|align|alignat|flalign|gather|multline|eqnarray|displaymath|math|dmath)\*?")
_CODE = re.compile(r"(?:verbatim|Verbatim|lstlisting|minted|alltt)\*?")
_TABLES = re.compile(r"(?:tabular|tabularx|tabulary|longtable|supertabular)\*?")
_LISTS = {"itemize": "ul", "enumerate": "ol", "description": "ul", "compactitem": "ul", "compactenum": "ol"}
_LEFT_OUT = {"comment": "a comment", "tikzpicture": "a drawing", "pspicture": "a drawing", "picture": "a drawing",
             "thebibliography": "a bibliography", "filecontents": "another file"}  # fmt: skip
_WITH_ARGUMENT = ("minipage", "multicols", "wrapfigure", "adjustwidth", "spacing", "otherlanguage", "block")


def read_latex(content: bytes) -> Document:
    """Return the text between the beginning and the end of the document; a file without them is all text."""
    text = decode(content)[0].replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    begin = re.search(r"^[^%\n]*?\\begin\s*\{document\}", text, re.MULTILINE)
    end = re.search(r"^[^%\n]*?\\end\s*\{document\}", text, re.MULTILINE)
    start = begin.end() if begin else 0
    reader = _Reader(text[: end.end() - len("\\end{document}") if end else len(text)])
    reader.macros = dict(_own_macros(text))
    for name in ("title", "author"):
        if begin and (found := re.search(rf"\\{name}\s*(?:\[[^\]]*\])?\s*(?=\{{)", text[:start])):
            reader.place = found.end()
            reader.said[name] = reader.inner(_braced(text, found.end())[0])
    reader.place = start
    reader.read()
    blocks = reader.outline.blocks()
    top = min((block.level for block in blocks if block.level), default=1)
    blocks = [replace(block, level=min(block.level - top + 1, 6)) if block.level else block for block in blocks]
    author = one_line(reader.said.get("author", ""))
    metadata = {"author": author} if author else {}
    title = one_line(reader.said.get("title", ""))
    document = make_document(title, blocks, metadata) if title else titled(blocks, "", metadata)
    return replace(document, left_out=tuple(reader.left_out))


@dataclass(frozen=True)
class _Macro:
    """A command that the document defines: its body, and the default of each argument (None: it has none)."""

    body: str
    defaults: tuple[str | None, ...] = ()


_MADE = re.compile(
    r"\\(?:(?:re|provide)?(?:new)?command\*?|DeclareRobustCommand\*?)\s*\{?\s*\\(?P<name>[a-zA-Z]+)\s*\}?\s*"
    r"(?:\[(?P<count>[1-9])\]\s*)?(?:\[(?P<default>[^\[\]]*)\]\s*)?(?=\{)"
    r"|\\[gex]?def\s*\\(?P<plain>[a-zA-Z]+)(?P<marks>(?:#[1-9])*)\s*(?=\{)"
    r"|\\(?:New|Renew|Provide|Declare)DocumentCommand\s*\{?\s*\\(?P<named>[a-zA-Z]+)\s*\}?\s*(?P<given>(?=\{))"
)
_KEPT_COMMANDS = frozenset((*_HEADINGS, "title", "author", "item", "footnote", "caption", "begin", "end", "input"))
"""Commands that mean what they always do, though the document changes how they look."""

_KINDS = re.compile(r"m|o|O\{([^{}]*)\}")  # a mandatory argument, an optional one, and one with a default
_BLANKS = re.compile(r"\s*")
_ENOUGH = 1 << 16  # characters that one command may expand to: some grow without end


def _own_macros(text: str) -> Iterator[tuple[str, _Macro]]:
    """Yield the macros that the document defines; one whose arguments are not just read one by one is left out."""
    for made in _MADE.finditer(text):
        place, defaults = made.end(), (None,) * (len(made["marks"] or "") // 2)
        if made["named"]:
            given, place = _braced(text, place)
            if _KINDS.sub("", given).strip():
                continue
            defaults = tuple(None if each[0] == "m" else each[1] or "" for each in _KINDS.finditer(given))
            place = _BLANKS.match(text, place).end()  # type: ignore[union-attr]
        elif made["name"]:
            defaults = (made["default"], *(None,) * int(made["count"] or 0))[: int(made["count"] or 0)]
        if text[place : place + 1] == "{":
            yield made["name"] or made["plain"] or made["named"], _Macro(_braced(text, place)[0], defaults)


def _braced(text: str, place: int) -> tuple[str, int]:
    """Return the text between the brace at `place` and its partner, and where it ends."""
    depth = 0
    for match in re.compile(r"\\.|%[^\n]*|[{}]", re.DOTALL).finditer(text, place):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return text[place + 1 : match.start()], match.end()
    return text[place + 1 :], len(text)


@dataclass
class _Reader:
    text: str
    place: int = 0
    line: int = 1  # of the beginning of the text
    macros: dict[str, _Macro] = field(default_factory=dict)
    expanded: list[int] = field(default_factory=lambda: [0])  # characters of the command at hand, and of all within it
    depth: int = 0  # of macros within macros
    outline: Outline = field(default_factory=Outline)
    said: dict[str, str] = field(default_factory=dict)  # the title and the author
    left_out: list[tuple[str, str, str]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)  # environments that are lists or tables
    counted: tuple[int, int] = (sys.maxsize, 0)  # a place, and its line
    notes: Outline | None = None  # that takes the footnotes of an argument

    def read(self) -> None:
        """Read everything from `place` on."""
        self.read_on()
        while self.open:
            self._end(self.open[-1])

    def read_on(self) -> None:
        """Read everything from `place` on, and leave what was begun open."""
        while self.place < len(self.text):
            match = _TOKEN.match(self.text, self.place)
            self.place = match.end()  # type: ignore[union-attr]
            kind, value = match.lastgroup, match[match.lastgroup]  # type: ignore[index,union-attr]
            if kind == "comment":
                if self.text[self.place : self.place + 1] == "\n":
                    self._paragraph()
            elif kind == "paragraph":
                self._paragraph()
            elif kind == "word":
                self._command(value)
            elif kind == "sign":
                self._sign(value)
            elif kind == "mark":
                self._mark(value)
            elif value == "\n":
                self._add(joint(self.text[: self.place - 1][-1:], self.text[self.place :].lstrip(" \t")[:1]))
            else:
                self._add(value if kind == "formula" else re.sub(r"\s+", " ", value))

    def inner(self, text: str) -> str:
        """Return an argument's text, one line per paragraph."""
        reader = _Reader(text, line=self._line(), macros=self.macros, notes=self.notes or self.outline,
                         expanded=self.expanded, depth=self.depth)  # fmt: skip
        reader.read()
        self.left_out += reader.left_out
        return "\n".join(block.text for block in reader.outline.blocks())

    def _line(self) -> int:
        seen, line = self.counted if self.counted[0] <= self.place else (0, self.line)
        self.counted = (self.place, line + self.text.count("\n", seen, self.place))
        return self.counted[1]

    def _add(self, text: str) -> None:
        self.outline.text(text, str(self._line()))

    def _paragraph(self) -> None:
        if not self.open or self.open[-1] in _LISTS:
            self.outline.start("p")
        else:
            self._add(" ")

    def _leave_out(self, reason: str, text: str) -> None:
        self.left_out.append((str(self._line()), reason, one_line(text)))

    # Arguments

    def _argument(self) -> str:
        """Return the next argument as written: in braces or a single sign."""
        self._optional()
        self.place = re.compile(r"[ \t]*\n?[ \t]*").match(self.text, self.place).end()  # type: ignore[union-attr]
        if self.text[self.place : self.place + 1] == "{":
            found, self.place = _braced(self.text, self.place)
            return found
        match = re.compile(r"\\[a-zA-Z]+|\\?.|", re.DOTALL).match(self.text, self.place)
        self.place = match.end()  # type: ignore[union-attr]
        return match[0]  # type: ignore[index]

    def _optional(self) -> str:
        """Return the content of brackets here, if there are any."""
        match = re.compile(r"[ \t]*((?:\[[^\[\]]*\]\s*)+)").match(self.text, self.place)
        self.place = match.end() if match else self.place
        return match[1].strip("[] \n") if match else ""

    # Commands

    def _sign(self, sign: str) -> None:
        if sign in _ACCENTS:
            self._accent(sign)
        elif sign == "\\":
            self._optional()
            if self.open and _TABLES.fullmatch(self.open[-1]):
                self.outline.start("tr")
                self.outline.start("td")
            else:
                self._add("\n")
        elif sign not in "/-,;:!>@()[]":
            self._add(" " if sign in " \n" else sign)
        elif sign in ",;:>":
            self._add(" ")

    def _accent(self, name: str) -> None:
        letters = self._argument().strip()
        letters = {"\\i": "i", "\\j": "j"}.get(letters, letters) or " "
        self._add(unicodedata.normalize("NFC", letters[0] + _ACCENTS[name] + letters[1:]))

    def _mark(self, mark: str) -> None:
        if mark == "&" and self.open and _TABLES.fullmatch(self.open[-1]):
            self.outline.start("td")
        elif mark not in "{}" and not (mark == "~" and _CITATION.match(self.text, self.place)):
            self._add(_MARKS.get(mark, mark))

    def _command(self, name: str) -> None:
        if name == "begin":
            self._begin(self._argument())
        elif name == "end":
            self._end(self._argument())
        elif name == "verb":
            mark = self.text[self.place : self.place + 1]
            stop = self.text.find(mark, self.place + 1) if mark else -1
            self._add(self.text[self.place + 1 : stop if stop > 0 else None])
            self.place = stop + 1 if stop > 0 else len(self.text)
        elif name in self.macros and name not in _DROPPED and name not in _KEPT_COMMANDS:
            self._expand(name, self.macros[name])
        elif name in _ACCENTS and len(name) == 1:
            self._accent(name)
        else:
            self._named(name)

    def _expand(self, name: str, macro: _Macro) -> None:
        """Read a macro's body with its arguments as if it stood here."""
        given = []
        for default in macro.defaults:
            given.append(self._argument() if default is None else self._given(default))
        if not macro.defaults:
            self._swallow()
        body = re.sub(r"#([1-9])", lambda mark: (*given, *[""] * 9)[int(mark[1]) - 1], macro.body)
        self.expanded[0] = (self.expanded[0] if self.depth else 0) + len(body) + 16
        if self.depth > 20 or self.expanded[0] > _ENOUGH:
            self._leave_out("a command that is defined by itself", f"\\{name}")
            return
        reader = replace(self, text=body, place=0, line=self._line(), depth=self.depth + 1, counted=(sys.maxsize, 0))
        reader.read_on()

    def _given(self, default: str) -> str:
        """Return the argument in brackets here, or its default."""
        match = re.compile(r"[ \t]*\[([^\[\]]*)\]").match(self.text, self.place)
        self.place = match.end() if match else self.place
        return match[1] if match else default

    def _named(self, name: str) -> None:
        if name in _SYMBOLS:
            self._swallow()
            self._paragraph() if name == "par" else self._add(_SYMBOLS[name])
        elif name in _HEADINGS:
            tag = f"h{min(_HEADINGS.index(name) + 1, 6)}"
            self.outline.start(tag)
            self._add(one_line(self.inner(self._argument())))
            self.outline.end(tag)
        elif name == "item" and self.open and self.open[-1] in _LISTS:
            label = self.inner(self._optional())
            self.outline.start("li")
            self._add(f"{label} " if label else "")
        elif name in ("footnote", "footnotetext", "endnote"):
            (self.notes or self.outline).note(self.inner(self._argument()))
        elif name == "thanks":
            self._leave_out("a note of the title", self.inner(self._argument()))
        elif name in ("title", "author"):
            self.said[name] = self.inner(self._argument())
        elif name in _OTHER_FILES:
            self._leave_out("another file, which is not followed: name it too", self._argument())
        elif _REFERENCES.fullmatch(name):
            self._leave_out("a reference or a citation", self._argument())
        elif name in ("def", "let"):
            self.place = re.compile(r"\s*\\\w+[^{\n]*").match(self.text, self.place).end()  # type: ignore[union-attr]
            if name == "def":
                self._argument()
        elif name in _DROPPED:
            for _ in range(_DROPPED[name]):
                self._argument()
        elif name in ("caption", "frametitle"):
            text = self.inner(self._argument())
            self.outline.start("p")
            self._add(text)
            self.outline.start("p")
        elif name == "enquote":
            self._add(f"“{self.inner(self._argument())}”")
        else:
            self._optional()
            if not _PLAIN.fullmatch(name) and self.text[self.place : self.place + 1] != "{":
                self._leave_out("an unknown command", f"\\{name}")
            self._swallow()

    def _swallow(self) -> None:
        """Skip the white space, or the empty braces, that end a command's name."""
        self.place = re.compile(r"\{\}|[ \t]*(?:\n(?![ \t]*\n)[ \t]*)?").match(self.text, self.place).end()  # type: ignore

    # Environments

    def _is_kept_together(self, name: str) -> bool:
        return bool(_FORMULAS.fullmatch(name) or _CODE.fullmatch(name)) or name.rstrip("*") in _LEFT_OUT

    def _whole(self, name: str) -> re.Match[str] | None:
        """Return a whole environment with its content."""
        return re.compile(rf"(.*?)\\end\s*\{{{re.escape(name)}\}}", re.DOTALL).match(self.text, self.place)

    def _begin(self, name: str) -> None:
        whole = self._whole(name) if self._is_kept_together(name) else None
        plain = name.rstrip("*")
        if _FORMULAS.fullmatch(name) and whole:
            self._add(f"\n\\begin{{{name}}}{whole[1]}\\end{{{name}}}\n")
            self.place = whole.end()
        elif _CODE.fullmatch(name) and whole:
            head = re.compile(r"(?:\[[^\]]*\])?(?:\{[^{}\n]*\})?[ \t]*\n").match(self.text, self.place)
            self.place = head.end() if head and head.end() <= whole.end(1) else self.place
            self.outline.start("pre")
            self._add(self.text[self.place : whole.end(1)])
            self.outline.end("pre")
            self.place = whole.end()
        elif plain in _LEFT_OUT:
            self._leave_out(_LEFT_OUT[plain], whole[1] if whole else self.text[self.place :])
            self.place = whole.end() if whole else len(self.text)
        elif name in _LISTS:
            self._optional()
            self.open.append(name)
            self.outline.start(_LISTS[name])
        elif _TABLES.fullmatch(name):
            for _ in range(2 if plain in ("tabularx", "tabulary") or name == "tabular*" else 1):
                self._argument()
            self.open.append(name)
            self.outline.start("table")
            self.outline.start("tr")
            self.outline.start("td")
        else:
            self._optional()
            if plain in _WITH_ARGUMENT:
                self._argument()
            self.outline.start("p")

    def _end(self, name: str) -> None:
        if name not in self.open:
            self.outline.start("p")
            return
        while self.open:
            last = self.open.pop()
            self.outline.end(_LISTS.get(last, "table"))
            if last == name:
                break
