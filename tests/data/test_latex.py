"""LaTeX is read as its text, with its formulas and its code as they are written."""

import random
import re

import pytest

from qlora_core.data.documents import read_document
from qlora_core.data.records import Block, Document


def latex(body: str) -> Document:
    return read_document(
        ".tex", f"\\documentclass{{article}}\n\\begin{{document}}\n{body}\n\\end{{document}}\n".encode()
    )


def texts(body: str) -> list[str]:
    return [block.text for block in latex(body).blocks]


THESIS = r"""% !TeX program = lualatex
\documentclass[12pt,a4paper]{report}
\usepackage[utf8]{inputenc} % acentos
\usepackage[portuguese]{babel}
\newcommand{\clube}{Sport Clube}
\newcommand*{\vetor}[1]{\mathbf{#1}}
\title{A mar\'e e a \textbf{rede}\thanks{Com apoio.}}
\author{In\^es Concei\c{c}\~ao}
\date{\today}
\begin{document}
\maketitle
\tableofcontents
\chapter{Introdu\c c\~ao}\label{cap:intro}
A mar\'e sobe \`as dez --- diz-se ``sempre''.\footnote{Segundo o \emph{rel\'ogio} da torre.} % nota
O \clube{} remenda a rede%
da na ilha~\cite{silva1931}.

\section*{C\'alculo}
Seja $x_1^2 + \frac{a}{b}$ e
\begin{equation}
  E = mc^2 \label{eq:e} % fica
\end{equation}
como em \eqref{eq:e}; 100\% de 5\,\euro{} \& mais.
\begin{enumerate}
  \item Primeiro
  \begin{itemize}
    \item dentro
  \end{itemize}
  \item[b)] Segundo
\end{enumerate}
\begin{table}[ht]
  \centering
  \caption{Golos por ano}
  \begin{tabular}{lr}
    \hline
    Ano & Golos \\ \hline
    1931 & 9 \\[2pt]
    \multicolumn{2}{c}{fim} \\
  \end{tabular}
\end{table}
\begin{lstlisting}[language=Python]
def f(x):
    return x % 2  # \c{c} fica
\end{lstlisting}
\input{capitulos/dois}
\begin{comment}
isto n\~ao
\end{comment}
\end{document}
isto tamb\'em n\~ao
"""


def test_a_thesis_is_its_title_sections_lists_tables_formulas_and_code():
    found = read_document(".tex", THESIS.encode())
    assert found == Document(
        "A maré e a rede",
        (
            Block("Introdução", 1, "13"),
            Block(
                "A maré sobe às dez — diz-se “sempre”. O Sport Clube remenda a rededa na ilha.",
                place="14",
            ),
            Block("Segundo o relógio da torre."),
            Block("Cálculo", 2, "18"),
            Block(
                "Seja $x_1^2 + \\frac{a}{b}$ e\n\\begin{equation}\nE = mc^2 \\label{eq:e} % fica\n\\end{equation}\n"
                "como em ; 100% de 5 € & mais.",
                place="19",
            ),
            Block("1. Primeiro\n  - dentro\n2. b) Segundo", place="25"),
            Block("Golos por ano", place="33"),
            Block("Ano: Golos\n1931: 9\nfim", place="36"),
            Block("def f(x):\n    return x % 2  # \\c{c} fica", place="42", verbatim=True),
        ),
        metadata={"author": "Inês Conceição"},
        left_out=(
            ("7", "a note of the title", "Com apoio."),
            ("16", "a reference or a citation", "silva1931"),
            ("23", "a reference or a citation", "eq:e"),
            ("45", "another file, which is not followed: name it too", "capitulos/dois"),
            ("46", "a comment", "isto n\\~ao"),
        ),
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (
            r"a\c{c}\~ao, a\c c\~{a}o, av\'o e av\^o, p\~oe, \`a, \"u, \'\i, \'{\i}, \c{C}\~A",
            "ação, ação, avó e avô, põe, à, ü, í, í, ÇÃ",
        ),
        (r"\'{E}vora \AA{} \o{} \ss \ae\ fim", "Évora Å ø ßæ fim"),
        (r"``um'' `dois' <<três>> \enquote{quatro} 1--2", "“um” ‘dois' «três» “quatro” 1–2"),
        (r"{\bf forte} \textit{inclinado} {\large grande} \underline{sub}", "forte inclinado grande sub"),
        (r"\href{https://example.org}{um sítio} e \url{https://example.org}", "um sítio e https://example.org"),
        (r"custa \$5, 10\%, A\&B, \#1, a\_b, \{x\}", "custa $5, 10%, A&B, #1, a_b, {x}"),
        (r"seja \(a_b\) e \[ c^2 \] e $$d$$", r"seja \(a_b\) e \[ c^2 \] e $$d$$"),
        (r"usa \verb|a_b\c| aqui", r"usa a_b\c aqui"),
        ("uma\nlinha e % comentário\n  outra", "uma linha e outra"),
        (r"\textcolor{red}{vermelho} \vspace{1cm}fim\\[1ex]linha", "vermelho fim\nlinha"),
        ("A \\LaTeX\\ e o \\LaTeX{} bem", "A LaTeX e o LaTeX bem"),
    ],
)
def test_what_commands_say(written, read):
    assert texts(written) == [read]


def test_paragraphs_are_parted_by_empty_lines_and_not_by_comments():
    assert texts("Um.\n% nada\nDois.\n\nTrês.\n% nada\n\nQuatro.\\par Cinco.") == [
        "Um. Dois.", "Três.", "Quatro.", "Cinco.",
    ]  # fmt: skip


def test_a_chapter_alone_is_text_and_its_heading_the_title():
    found = read_document(".tex", b"\\chapter{Mar\\'e}\nSobe \\`as dez.\n\\section{Fim}\nDesce.\n")
    assert (found.title, [block.text for block in found.blocks]) == ("Maré", ["Sobe às dez.", "Fim", "Desce."])


def test_a_note_of_a_heading_is_no_part_of_it():
    assert latex("Antes.\n\\section{Maré\\footnote{Alta.}}\nSobe.").title == "Maré"
    assert texts("Antes.\n\\section{Maré\\footnote{Alta.}}\nSobe.") == ["Antes.", "Sobe.", "Alta."]


def test_an_unknown_command_is_named_and_what_it_is_given_is_text():
    found = latex("O \\vento{} e a \\onda{maré} \\estranho sobem.")
    assert [block.text for block in found.blocks] == ["O e a maré sobem."]
    assert [each[1:] for each in found.left_out] == [("an unknown command", "\\estranho")]


def test_the_old_encoding_of_a_file_is_found():
    content = "\\documentclass{article}\n\\usepackage[latin1]{inputenc}\n\\begin{document}\nA maré não é à tarde.\n"
    assert read_document(".tex", content.encode("cp1252")).blocks[0].text == "A maré não é à tarde."


@pytest.mark.parametrize("content", [b"", b"% nada\n", b"\\documentclass{a}\n\\begin{document}\\end{document}"])
def test_latex_without_text_is_refused(content):
    with pytest.raises(ValueError, match=r"^holds no text$"):
        read_document(".tex", content)


def test_damaged_latex_is_a_document_or_a_reason():
    rng, outcomes = random.Random(5), set()
    for _ in range(300):
        broken = bytearray(THESIS.encode())
        for _ in range(rng.choice((1, 5, 40))):
            broken[rng.randrange(len(broken))] = rng.choice(b"{}\\$%&[]e \n\xff")
        content = bytes(broken[: rng.choice((len(broken), rng.randrange(1, len(broken))))])
        try:
            outcomes.add(bool(read_document(".tex", content).blocks))
        except ValueError as error:
            outcomes.add(bool(re.fullmatch(r"[^\n]+", str(error))))
    assert outcomes == {True}


def test_a_price_is_no_formula_of_two_paragraphs():
    assert texts("Custa $5.\n\nE não $6.") == ["Custa $5.", "E não $6."]


def test_the_lines_of_a_long_text_are_counted_once():
    """With the square of its length it would take minutes."""
    found = latex("A mar\\'e sobe \\textbf{sempre} $x$.\n\n" * 20_000)
    assert found.blocks[-1] == Block("A maré sobe sempre $x$.", place="40001")


def test_braces_that_never_end_take_no_time():
    assert latex("\\emph{" * 20_000 + "fim").blocks[0].text == "fim"


# The document's own commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "written", "read"),
    [
        (r"\newcommand{\mill}[1]{the mill of #1}", r"\mill{Lorvão} burned", ["the mill of Lorvão burned"]),
        (r"\newcommand{\km}[2][km]{#2~#1}", r"\km{12} and \km[miles]{7} away", ["12 km and 7 miles away"]),
        (r"\newcommand*\twice[1]{#1 and #1}", r"\twice{again}.", ["again and again."]),
        (r"\def\pair#1#2{#2, #1}", r"\pair{Lopes}{Ana} and \pair ab", ["Ana, Lopes and b, a"]),
        (r"\newcommand{\a}[1]{\emph{#1}}\newcommand{\b}[1]{\a{#1}!}", r"\b{Now}", ["Now!"]),
        (r"\NewDocumentCommand{\who}{m O{Ana}}{#2 of #1}", r"\who{Lorvão}, \who{Coimbra}[Rui]",
         ["Ana of Lorvão, Rui of Coimbra"]),
        (r"\DeclareRobustCommand{\x}[1]{<#1>}", r"\x{$a_1$}", ["<$a_1$>"]),
        (r"\newcommand{\bq}{\begin{itemize}}\newcommand{\eq}{\end{itemize}}", r"\bq \item One \item Two \eq After",
         ["- One\n- Two", "After"]),
        (r"\newcommand{\two}[2]{#1\par #2}", r"\two{First.}{Second.}", ["First.", "Second."]),
        (r"\newcommand{\mill}[1]{mill #1}", r"$\mill{x}$", [r"$\mill{x}$"]),
    ],
)  # fmt: skip
def test_a_command_of_the_document_says_its_text_with_its_arguments(made, written, read):
    document = read_document(".tex", f"{made}\n\\begin{{document}}\n{written}\n\\end{{document}}\n".encode())
    assert [block.text for block in document.blocks] == read
    assert document.left_out == ()


def test_a_command_that_makes_headings_makes_headings():
    made = r"\newcommand{\chap}[1]{\section{#1}\label{s:#1}}\renewcommand{\section}[1]{\old{#1}}"
    said = "\\chap{Old}\nIt stood.\n\n\\chap{New}\nIt burned."
    text = f"{made}\\title{{Mills}}\n\\begin{{document}}\n{said}\n\\end{{document}}"
    blocks = read_document(".tex", text.encode()).blocks
    assert [(block.text, block.level) for block in blocks] == [
        ("Old", 1),
        ("It stood.", 0),
        ("New", 1),
        ("It burned.", 0),
    ]


@pytest.mark.parametrize("made", [r"\def\a{\b}\def\b{\a}", r"\newcommand{\a}[1]{\a{#1}\a{#1}}", r"\def\a{\a\a x}"])
def test_a_command_that_is_defined_by_itself_ends(made):
    document = read_document(".tex", f"{made}\\begin{{document}}One \\a{{x}} two.\\end{{document}}".encode())
    assert document.blocks[0].text.startswith("One ")
    assert document.blocks[0].text.endswith("two.")
    assert document.left_out


def test_lines_of_chinese_are_joined_without_a_blank():
    assert texts("这座磨坊建\n于一九三一年。\n水 wheel\nturns") == ["这座磨坊建于一九三一年。水 wheel turns"]
