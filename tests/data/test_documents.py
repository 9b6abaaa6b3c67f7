"""Files of prose to titles, blocks and lines: what is text, what is not, and that damage is a reason and no crash."""

import io
import logging
import random
import re
import subprocess
import sys
import warnings
import zipfile

import docx
import pypdf
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from qlora_core.data.documents import SUFFIXES, read_document
from qlora_core.data.records import Block, Document, Fragment


def markdown(text: str) -> Document:
    return read_document(".md", text.encode())


def page(body: str, head: str = "") -> Document:
    return read_document(".html", f"<!DOCTYPE html><html><head>{head}</head><body>{body}</body></html>".encode())


def texts(document: Document) -> list[str]:
    return [block.text for block in document.blocks]


def lines(document: Document) -> list[str]:
    return [line.text for line in document.lines]


def reason(suffix: str, content: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        read_document(suffix, content)
    return str(caught.value)


def save(document) -> bytes:
    """What python-docx or pypdf writes of it."""
    file = io.BytesIO()
    (document.write if isinstance(document, pypdf.PdfWriter) else document.save)(file)
    return file.getvalue()


# Markdown ------------------------------------------------------------------------------------------------------------

BIOGRAPHY = """\
# ⚽ Ana Silva ⚽

Nasceu em **Évora** e chegou ao *Clube*
em [1994](https://example.org "Um ano").

## 🏆 Carreira

- Capitã
  1. primeira época
  2. segunda época
- [x] Campeã 🥇
"""


def test_markdown_becomes_a_title_and_blocks_with_their_lines():
    assert markdown(BIOGRAPHY) == Document(
        title="Ana Silva",
        blocks=(
            Block("Nasceu em Évora e chegou ao Clube em 1994.", 0, "3"),
            Block("Carreira", 2, "6"),
            Block("- Capitã\n  1. primeira época\n  2. segunda época\n- Campeã 🥇", 0, "8"),
        ),
    )


@pytest.mark.parametrize("suffix", [".md", ".markdown", ".MD"])
def test_markdown_has_two_suffixes_in_either_case(suffix):
    assert read_document(suffix, BIOGRAPHY.encode()).title == "Ana Silva"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Era **a *melhor* guarda-redes** e ~~nunca~~ sempre.", ["Era a melhor guarda-redes e sempre."]),
        ("Ver ![o golo](golo.png)o golo <b>aqui</b><!-- nota -->.", ["Ver o golo aqui."]),
        ("Marcou `3` golos\nna Taça.", ["Marcou 3 golos na Taça."]),
        ("Marcou  \nna Taça\\\ne na Liga<br/>também.", ["Marcou\nna Taça\ne na Liga\ntambém."]),
        ("> Nunca desisti,\n> disse.\n>\n> > Nunca!", ["Nunca desisti, disse.", "Nunca!"]),
        ("```text\nBenedita 3\n\nCalhetas 0\n```", ["Benedita 3\n\nCalhetas 0"]),
        ("Antes\n\n---\n\n***\n\ndepois", ["Antes", "depois"]),
        ("<!-- rascunho\n\nfalta a data -->\n\nTexto", ["Texto"]),
        ("<script>\nlet golos = 3 < 4;\n</script>\n\nTexto", ["Texto"]),
        (
            "<div align='center'>\nA <i>capitã</i> &amp; mais<br>Évora\n</div>\n\nTexto",
            ["A capitã & mais\nÉvora", "Texto"],
        ),
        ("Um \t  espaço\u00a0\u00a0só &nbsp; aqui", ["Um espaço só aqui"]),
        ("A &lt;3 pelo clube ⚽❤️", ["A <3 pelo clube ⚽❤️"]),
        ("3. três\n4. quatro", ["3. três\n4. quatro"]),
        ("- [ ] por fazer\n- [X] feito\n- [x](y) ligação", ["- por fazer\n- feito\n- x ligação"]),
        ("- um\n\n  mais\n- dois", ["- um\n  mais\n- dois"]),
        ("- um\n    - dois\n        - três", ["- um\n  - dois\n    - três"]),
        ("| Nome | Posição |\n|---|---|\n| Ana | avançada |", ["Nome: Posição\nAna: avançada"]),
        ("| | |\n|---|---|\n| **Nome:** | Ana |\n| Clube | |", ["Nome: Ana\nClube"]),
        ("|Época|Jogos|Golos|\n|-|-|-|\n|1994||9|", ["Época | Jogos | Golos\n1994 | | 9"]),
        ("- plantel\n\n  |Nome|N.º|\n  |-|-|\n  |Ana|9|", ["- plantel\n  Nome: N.º\n  Ana: 9"]),
    ],
)
def test_markup_of_markdown_goes_and_its_text_stays(written, read):
    assert texts(markdown(written)) == read


def test_html_in_markdown_counts_lines_and_has_headings():
    found = markdown('<h1 align="center">\n  ⚽ Ana\n  Silva\n</h1>\n\n<p>\n\nNasceu.\n\n<div>\n\n<p>Jogou.</div>')
    assert found == Document("Ana Silva", (Block("Nasceu.", 0, "8"), Block("Jogou.", 0, "12")))
    assert markdown("<div>\nUm\n\n<p>dois<br>\ntrês\n<!-- x\n--> quatro<p>\ncinco").blocks == (
        Block("Um", 0, "2"), Block("dois\ntrês quatro", 0, "4"), Block("cinco", 0, "8"),
    )  # fmt: skip


def test_code_begins_at_its_own_first_line():
    assert [block.place for block in markdown("```\num\n```\n\n    dois").blocks] == ["2", "5"]


@pytest.mark.parametrize(
    ("written", "title", "kept"),
    [
        ("# Ana\n\nTexto\n\n# Rita", "Ana", ["Texto", "Rita"]),  # first, and others follow
        ("Texto\n\n# Ana\n\n## Carreira", "Ana", ["Texto", "Carreira"]),  # the only one of level 1
        ("Texto\n\n# Ana\n\n# Rita", "", ["Texto", "Ana", "Rita"]),
        ("Texto\n\n## Ana", "", ["Texto", "Ana"]),
        ("Texto\n\n## Carreira\n\n# Ana", "", ["Texto", "Carreira", "Ana"]),  # not the first
        ("## Ana\n\nTexto", "Ana", ["Texto"]),
        ("Ana\n===\n\nTexto", "Ana", ["Texto"]),
        ("# ⚽🏆\n\nTexto", "⚽🏆", ["Texto"]),  # nothing but emoji
        ("# 1️⃣ Ana 👩🏽‍🦰 e Rita 🇵🇹 2️⃣\n\nTexto", "Ana 👩🏽‍🦰 e Rita", ["Texto"]),
        ("# 👩‍🦰 Ana 👩‍🦰\n\nTexto", "Ana", ["Texto"]),
        ("# Ana\n\n## ⭐ Golos: 10 ⭐\n\n## © 2024", "Ana", ["Golos: 10", "© 2024"]),
        ("**Ana Silva**\n\nTexto", "Ana Silva", ["Texto"]),
        ("⚽ **Ana *Silva* 🏆**\n\nTexto", "Ana Silva", ["Texto"]),
        ("**Ana** jogou\n\nTexto", "", ["Ana jogou", "Texto"]),
        ("**Ana**\n**Silva**\n\nTexto", "", ["Ana Silva", "Texto"]),
        (f"**{'Ana' * 30}**\n\nTexto", "", ["Ana" * 30, "Texto"]),
        ("Texto\n\n**Ana**", "", ["Texto", "Ana"]),
        ("- **Ana**\n\nTexto", "", ["- Ana", "Texto"]),
        ("<p>Antes</p>\n\n**Ana**\n\nTexto", "", ["Antes", "Ana", "Texto"]),
        ("**Ana**\n\nTexto\n\n# Rita", "Rita", ["Ana", "Texto"]),  # there is a heading
    ],
)
def test_what_is_the_title_of_markdown(written, title, kept):
    found = markdown(written)
    assert (found.title, texts(found)) == (title, kept)


def test_front_matter_is_metadata_and_its_lines_count():
    matter = "---\ntitle: '⚽ Ana Silva'\nclube: Sporting de Évora # o de cá\ntags: [a, b]\nvazio:\n  - x\n---\n"
    found = markdown(matter + "Texto")
    assert found == Document(
        "Ana Silva",
        (Block("Texto", 0, "8"),),
        metadata={"title": "⚽ Ana Silva", "clube": "Sporting de Évora # o de cá"},
    )
    assert markdown(matter + "# Rita\n\nTexto").title == "Rita"
    found = markdown(matter + "## Carreira\n\nTexto")  # a section, when the file says what it is about
    assert (found.title, texts(found)) == ("Ana Silva", ["Carreira", "Texto"])


@pytest.mark.parametrize(
    "text", ["---\nAna jogou cá.\n\n---\n\nFim", "---\nclube: Évora\n\nsem fim", "Ana\n\n---\na: b"]
)
def test_lines_that_only_look_like_front_matter_are_text(text):
    found = markdown(text)
    assert not found.metadata
    for word in ("Ana", "Évora", "Fim", "sem fim", "a: b"):
        assert (word in "\n".join(texts(found))) == (word in text)


@pytest.mark.parametrize(
    "text",
    [
        "A net of 4*7*2 knots.",
        "The area is a*b*c, or 2**8 with **kwargs and *args.",
        "It is $a_1*b_1*c_1$ or $f^*$ and $g^*$.",
        "So $$x_i * y_i = \\{1\\}$$ holds, and \\(u_1*v_1 = w_1\\) too.",
        "Prices: $5*2 and $6*3.",
        "names like tide_of_day and __init__ stay",
        "A Net<Rope> and a Map<String, List<Object>>; give <boat> and <input>, press <Esc>.",
        "if a<b and c>d then <<=",
        "A List<Object> and a <title>",
        "[Rosa]: sim",
    ],
)
def test_signs_of_formulas_and_code_are_no_markup(text):
    assert texts(markdown(text)) == [text.replace("\\\\", "\\")]


def test_a_formula_on_lines_of_its_own_is_no_list_and_no_heading():
    formula = "$$\na_1 * b_1\n- c_1\n= d_1\n$$"
    assert texts(markdown(f"So:\n\n{formula}\n\nThat is all.")) == ["So:", formula, "That is all."]
    formula = "\\begin{align}\na &= b * c * d\n\\end{align}"
    assert texts(markdown(f"So:\n\n{formula}")) == ["So:", formula]


def test_tags_that_html_knows_still_go_and_others_stay_in_html_too():
    assert texts(markdown('A <b>bold</b> <a id="x"/>word<br>and <i>more</i>')) == ["A bold word\nand more"]
    assert texts(markdown("<port>\n\nGive <tide> first.")) == ["<port>", "Give <tide> first."]
    assert texts(markdown("<div>\nA List<Tide> is <b>here</b>\n</div>")) == ["A List<Tide> is here"]


CODE = "def moor(boats):\n    for boat in boats:\n        if boat.free:\n            yield boat\n\n    return 'a.b. c'"


@pytest.mark.parametrize(
    "written",
    [
        f"Text\n\n```python\n{CODE}\n```",
        f"Text\n\n~~~\n{CODE}\n~~~",
        "Text\n\n" + "\n".join(f"    {line}" if line else "" for line in CODE.split("\n")),
        "Text\n\n> ```\n" + "\n".join(f"> {line}" for line in CODE.split("\n")) + "\n> ```",
    ],
)
def test_code_keeps_its_lines(written):
    assert markdown(written).blocks[1] == Block(CODE, 0, markdown(written).blocks[1].place, verbatim=True)
    assert texts(page(f"<p>Text</p><pre><code>{CODE}</code></pre>")) == ["Text", CODE]
    assert texts(markdown("- Text\n\n  ```\n  if a:\n      b\n  ```"))[0].endswith("if a:\n      b")


def test_the_numbers_of_a_list_are_the_writers():
    assert texts(markdown("1994. Founded.\n1998. Refounded.\n2003. Closed.")) == [
        "1994. Founded.\n1998. Refounded.\n2003. Closed."
    ]
    assert texts(markdown("1. a\n1. b")) == ["1. a\n2. b"]


OBSIDIAN = """\
[[Rosa Lima|Rosa]] mended nets with [[Zeca]]. ![[net.png]] See [[Log 1950#May]] and [[Log 1951#^a1b2c3|there]].

> [!warning]- Careful
> The floor is rotten.

She spoke ==little==. %%never print this%% ^para-7

%%
nor this, *at all*
%%

Code: `%%kept%% [[kept]] ==kept==`, and 5%% of 10%% too.
"""


def test_marks_of_obsidian_go_and_hidden_comments_are_left_out():
    found = markdown(OBSIDIAN)
    assert texts(found) == [
        "Rosa mended nets with Zeca. See Log 1950 > May and there.",
        "Careful The floor is rotten.",
        "She spoke little.",
        "Code: %%kept%% [[kept]] ==kept==, and 5%% of 10%% too.",
    ]
    assert [each[:2] for each in found.left_out] == [("6", "hidden comment"), ("8", "hidden comment")]
    assert found.blocks[-1].place == "12"


def test_numbers_of_notes_in_markdown_go_and_the_notes_stay():
    found = markdown("She left in 1950[^1] and in 1962<sup>2</sup>.\n\n[^1]: The register says 1951.\n\nThe rest [^x].")
    assert texts(found) == ["She left in 1950 and in 1962.", "The register says 1951.", "The rest [^x]."]


def test_lines_of_markdown_are_joined_as_their_script_does():
    assert texts(markdown("旧仓库里很久没有人进\n去过。")) == ["旧仓库里很久没有人进去过。"]
    assert texts(page("<p>旧仓库里很久没有人进\n  去过。</p>")) == ["旧仓库里很久没有人进去过。"]
    assert texts(markdown("the net is dry,\nthe floats are green,\nand nobody\nwill mend them\nnow")) == [
        "the net is dry,\nthe floats are green,\nand nobody\nwill mend them\nnow"
    ]
    assert texts(markdown("Ana: where?\nRui: there\nAna: when?\nRui: now")) == [
        "Ana: where?\nRui: there\nAna: when?\nRui: now"
    ]


def test_deep_quotations_are_text_and_deeper_ones_do_no_harm():
    assert texts(markdown("> " * 40 + "Évora\n\nTexto")) == ["Évora", "Texto"]
    assert texts(markdown("> " * 5000 + "Évora\n\nTexto"))[-1] == "Texto"


# HTML ----------------------------------------------------------------------------------------------------------------


def test_html_becomes_a_title_and_blocks_with_their_lines():
    found = page(
        "\n<h1>⚽ Ana Silva</h1>\n<h2>Carreira 🏆</h2>\n<p>Jogou\n em <b>Évora</b>.</p>", "<title>Clube</title>"
    )
    assert found == Document("Ana Silva", (Block("Carreira", 2, "3"), Block("Jogou em Évora.", 0, "4")))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("<p>Um<p>Dois<br>linhas", ["Um", "Dois\nlinhas"]),  # not closed
        ("solto <i>no</i> corpo<div>e numa <span>caixa</span><p>dentro</p>e depois</div>", 
         ["solto no corpo", "e numa caixa", "dentro", "e depois"]),
        ("<blockquote>Nunca!</blockquote><pre>Évora  3\n\n  Calhetas 0</pre>", ["Nunca!", "Évora  3\n\n  Calhetas 0"]),
        ("<dl><dt>Nome<dd>Ana</dl><figure><img alt=x><figcaption>Golo</figcaption></figure>", ["Nome", "Ana", "Golo"]),
        ("<ul><li>Capitã<ol start=4><li>um<li>dois</ol></li><li><p>Campeã</p><p>mais</p></ul>",
         ["- Capitã\n  4. um\n  5. dois\n- Campeã\n  mais"]),
        ("<table><caption>Ficha</caption><tr><th></th><th></th></tr><tr><td>Nome:</td><td>Ana<br>Silva</td></tr></table>",
         ["Ficha\nNome: Ana Silva"]),
        ("<table><tr><td>a<td>b<td>c<tr><td>d<td><td>f</table>", ["a | b | c\nd | | f"]),
        ("<table><tr><td><h2>Ana</h2><p>Um</p><p>Dois</p></td><td>Lado</td></table>", ["Ana", "Um", "Dois", "Lado"]),
        ("<table><tr><td><p>Um</p><p>Dois</p></td></tr></table>", ["Um", "Dois"]),  # a box around text
        ("<table><tr><td>menu<td><table><tr><td>Nome<td>Ana</table></table>", ["menu", "Nome: Ana"]),
        ("<p>a&nbsp; &shy;b &lt;3 &#x1F3C6;</p><p> &nbsp; </p>", ["a \u00adb <3 🏆"]),
        ("<p><![CDATA[x]]></p><!-- nota --><p>Texto</p>", ["x", "Texto"]),
    ],
)  # fmt: skip
def test_structure_of_html(written, read):
    assert texts(page(written)) == read


@pytest.mark.parametrize(
    "dropped",
    [
        "<script>let x</script>", "<style>p {}</style>", "<nav>menu</nav>", "<header>topo</header>",
        "<footer>fundo</footer>", "<aside>ver</aside>", "<form>nome</form>", "<noscript>ligue</noscript>",
        "<template>x</template>", "<svg><title>s</title><text>x</text></svg>", "<p hidden>x</p>",
        "<p aria-hidden='true'>x</p>", "<p style='color: red; DISPLAY : none'>x</p>", "<div hidden><p>x</p></div>",
    ],
)  # fmt: skip
def test_what_is_not_the_text_of_a_page_is_dropped(dropped):
    assert texts(page(f"<p>Antes</p>{dropped}<p>depois</p>")) == ["Antes", "depois"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('He rowed<a epub:type="noteref" href="#n1">1</a> home.', "He rowed home."),
        ('In 1950<sup><a href="#f2">2</a></sup> he left.', "In 1950 he left."),
        ('In 1950<a class="footnote-ref" href="#fn3"><sup>3</sup></a> he left.', "In 1950 he left."),
        ('In 1950<sup id="cite_ref-4" class="reference"><a href="#cite_note-4">[4]</a></sup>.', "In 1950."),
        ('He left in 1950<a href="notes.xhtml#note5">5</a>.', "He left in 1950."),
        ("In 1950<sup>6</sup> he left<sup>7</sup>.", "In 1950 he left."),
        ("An area of 12 m<sup>2</sup>, or 10<sup>6</sup> and 2<sup>n</sup>.", "An area of 12 m², or 10⁶ and 2ⁿ."),
        ("x<sup>n+1</sup> on the 1<sup>st</sup>, n.<sup>o</sup> 3", "x^(n+1) on the 1st, n.o 3"),
        ('See chapter <a href="c5.xhtml#p3">5</a>.', "See chapter 5."),
        ("<ruby>港<rt>みなと</rt></ruby>の船", "港の船"),
        ("<math><msup><mi>x</mi><mn>2</mn></msup></math> is a square", "x^2 is a square"),
    ],
)
def test_what_is_raised_says_what_it_means(written, read):
    assert texts(page(f"<p>{written}</p>")) == [read]


def test_notes_of_a_page_stay_at_their_place():
    note = '<aside epub:type="footnote" id="n1"><p><a href="#r1">1</a>. So he said. <a href="#r1">↩</a></p></aside>'
    assert texts(page(f"<p>He left.</p>{note}<p>End.</p>")) == ["He left.", "1. So he said.", "End."]


def test_header_and_footer_of_an_article_stay():
    article = "<article><header>Por Rita</header><p>Texto</p><footer>Évora</footer></article>"
    assert texts(page(article)) == ["Por Rita", "Texto", "Évora"]
    assert texts(page(article * 2)) == ["Por Rita", "Texto", "Évora"] * 2  # all of the page is read
    assert texts(page("<p>fora</p><main><header>Por Rita</header>Texto</main>")) == ["Por Rita", "Texto"]


def test_only_main_or_the_only_article_is_read():
    assert texts(page("<p>fora</p><article><p>Ana</p></article>")) == ["Ana"]
    assert texts(page("<p>fora</p><article>Ana</article><article>Rita</article>")) == ["fora", "Ana", "Rita"]
    assert texts(page("<article>Ana</article><main><p>Rita</p></main>")) == ["Rita"]


@pytest.mark.parametrize(
    ("body", "head", "title", "kept"),
    [
        (
            "<p>Antes</p><h1>Ana</h1><p>Texto</p><h1>Rita</h1>",
            "<title>Clube</title>",
            "Ana",
            ["Antes", "Texto", "Rita"],
        ),
        ("<h2>Carreira</h2><p>Texto</p>", "<title> 🏆 Ana\nSilva </title>", "Ana Silva", ["Carreira", "Texto"]),
        ("<p>Texto</p>", "", "", ["Texto"]),
        ("<header><h1>Clube</h1></header><p>Texto</p>", "<title>Ana</title>", "Ana", ["Texto"]),
        ("<header><h1>Ana</h1></header><p>Texto</p>", "", "Ana", ["Texto"]),
        ("<header><h1>Clube</h1><h1>Ana</h1></header><p>Texto</p>", "", "", ["Texto"]),
        ("<h1><div>Ana</div></h1><h2>Um<p>dois</p></h2>", "", "Ana", ["Um", "dois"]),
    ],
)
def test_what_is_the_title_of_a_page(body, head, title, kept):
    found = page(body, head)
    assert (found.title, texts(found)) == (title, kept)


def test_a_block_begins_where_its_text_does():
    assert page("\n<div>\n<b>Um</b>\n<p>dois</p> três</div>").blocks == (
        Block("Um", 0, "3"), Block("dois", 0, "4"), Block("três", 0, "2"),
    )  # fmt: skip


def test_a_heading_that_is_not_closed_does_not_make_headings_of_the_text():
    assert [block.level for block in page("<h2>Ana<p>Texto<p>mais").blocks] == [2, 0, 0]


def test_the_author_of_a_page_is_metadata():
    assert page("<p>Texto", '<meta name="Author" content=" Rita  Lã ">').metadata == {"author": "Rita Lã"}


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ("", "utf-16"),
        ('<meta charset="windows-1252">', "utf-8"),  # which it only says
        ('<meta charset="windows-1252">', "utf-8-sig"),
        ('<meta charset="utf-8">', "cp1252"),
        ('<meta charset="iso-8859-1">', "cp1252"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-15">', "iso-8859-15"),
        ('<meta charset="mac-roman">', "mac_roman"),
        ('<meta charset="klingon">', "cp1252"),
        ('<meta charset="hex">', "cp1252"),
    ],
)
def test_encoding_of_a_page(head, encoding):
    text = "A campeã de Évora não vendeu a opção: custou 30 €, e o João saiu em junho."
    text += " “Saiu”" if encoding != "iso-8859-15" else ""
    assert texts(read_document(".htm", f"<html><head>{head}</head><p>{text}</p>".encode(encoding))) == [text]


@pytest.mark.parametrize("tag", ["div", "ul", "ol", "table", "h1", "b", "header", "article", "blockquote"])
def test_a_page_that_nests_without_end_does_not_crash(tag):
    depth = 200_000 if tag == "div" else 5_000
    cell = "<li>Ana" if tag in ("ul", "ol") else "<tr><td>Ana" if tag == "table" else "Ana "
    found = page("<p>Texto</p>" + f"<{tag}>{cell}" * depth)
    assert "Texto" in (*texts(found), found.title) or tag == "article"
    if tag not in ("header", "article"):
        assert sum(text.count("Ana") for text in (*texts(found), found.title)) == depth
    assert max(map(len, texts(found))) < 200 * depth


# Word ----------------------------------------------------------------------------------------------------------------


def word(document) -> Document:
    return read_document(".docx", save(document))


def bare_word():
    """A document of which neither python-docx nor Word has said anything."""
    document = docx.Document()
    document.core_properties.author = document.core_properties.title = ""
    return document


def test_word_becomes_a_title_and_blocks_in_their_order():
    document = bare_word()
    document.add_paragraph("Retrato")  # before the title: the style says that it is one
    document.add_paragraph("⚽ Ana Silva", style="Title")
    document.add_heading("Carreira 🏆", 1)
    document.add_paragraph("Jogou  em\u00a0").add_run("Évora").bold = True
    document.add_paragraph("Capitã", style="List Bullet")
    document.add_paragraph("1994", style="List Bullet 2")
    document.add_paragraph("Campeã", style="List Number")
    document.add_paragraph("  ")
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ["Nome", "Ana", "Golos", "9"], strict=True):
        cell.text = text
    document.add_heading("Notas", 9)
    document.add_paragraph("Fim.").add_run().add_break()
    assert word(document) == Document(
        "Ana Silva",
        (
            Block("Retrato"),
            Block("Carreira", 1),
            Block("Jogou em Évora"),
            Block("- Capitã\n  - 1994\n- Campeã"),
            Block("Nome: Ana\nGolos: 9"),
            Block("Notas", 6),
            Block("Fim."),
        ),
    )


def test_numbered_paragraphs_of_word_are_lists():
    document = bare_word()
    for depth, text in enumerate(["um", "dois", "três"]):
        properties = document.add_paragraph(text)._p.get_or_add_pPr().get_or_add_numPr()
        properties.get_or_add_numId().val = 1
        properties.get_or_add_ilvl().val = depth
    out = document.add_paragraph("fora da lista", style="List Bullet")._p.get_or_add_pPr().get_or_add_numPr()
    out.get_or_add_numId().val = 0
    heading = document.add_heading("Numerado", 2)._p.get_or_add_pPr().get_or_add_numPr()
    heading.get_or_add_numId().val = 1
    assert word(document).blocks == (
        Block("- um\n  - dois\n    - três"),
        Block("fora da lista"),
        Block("Numerado", 2),
    )


def test_a_list_of_word_has_no_level_that_word_has_not():
    document = bare_word()
    properties = document.add_paragraph("um")._p.get_or_add_pPr().get_or_add_numPr()
    properties.get_or_add_ilvl().val = 10**9
    assert texts(word(document)) == ["- " * 9 + "um"]


def test_a_style_counts_as_what_it_is_based_on():
    document = bare_word()
    for name, base in (("Título do clube", "Heading 1"), ("Lista do clube", "List Bullet")):
        document.styles.add_style(name, docx.enum.style.WD_STYLE_TYPE.PARAGRAPH).base_style = document.styles[base]
    document.add_paragraph("Ana Silva", style="Título do clube")
    document.add_paragraph("Capitã", style="Lista do clube")
    assert word(document) == Document("Ana Silva", (Block("- Capitã"),))


def test_links_and_insertions_of_word_are_text_and_deletions_are_not():
    document = bare_word()
    paragraph = document.add_paragraph("A ")
    for tag, inner in (
        ("hyperlink", "<w:r><w:t>capitã</w:t></w:r>"),
        ("ins", "<w:r><w:tab/><w:t>jogou</w:t></w:r>"),
        ("del", "<w:r><w:delText>perdeu</w:delText></w:r>"),
        ("moveFrom", "<w:r><w:t>saiu</w:t></w:r>"),
        ("r", "<w:pict><w:txbxContent><w:p><w:r><w:t>caixa</w:t></w:r></w:p></w:txbxContent></w:pict>"),
        ("r", "<w:ruby><w:rt><w:r><w:t>leitura</w:t></w:r></w:rt></w:ruby>"),
        ("smartTag", "<w:r><w:br/><w:t>em Évora</w:t><w:noBreakHyphen/><w:t>Sul</w:t></w:r>"),
    ):
        paragraph._p.append(parse_xml(f"<w:{tag} {nsdecls('w')}>{inner}</w:{tag}>"))
    document.add_comment(paragraph.runs[0], text="comentário")
    section = document.sections[0]
    section.header.paragraphs[0].text, section.footer.paragraphs[0].text = "cabeçalho", "rodapé"
    assert texts(word(document)) == ["A capitã jogou\nem Évora-Sul"]


def test_content_controls_of_word_are_text_and_its_table_of_contents_is_not():
    document = bare_word()
    control = "<w:sdt {}><w:sdtPr>{}</w:sdtPr><w:sdtContent><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    gallery = '<w:docPartObj><w:docPartGallery w:val="Table of Contents"/></w:docPartObj>'
    for kind, text in (("", "Texto"), (gallery, "Índice")):
        document.element.body.insert(0, parse_xml(control.format(nsdecls("w"), kind, text)))
    document.styles.add_style("toc 1", docx.enum.style.WD_STYLE_TYPE.PARAGRAPH)
    document.add_paragraph("Carreira\t3", style="toc 1")
    assert texts(word(document)) == ["Texto"]


def test_a_table_of_word_that_arranges_a_page_is_its_paragraphs():
    document = bare_word()
    cell = document.add_table(1, 2).cell(0, 1)
    cell.paragraphs[0].text = "Texto"
    cell.add_paragraph("Carreira", style="Heading 2")
    cell.add_table(1, 2).cell(0, 0).text = "dentro"
    document.add_paragraph("fim")
    assert word(document).blocks == (Block("Texto"), Block("Carreira", 2), Block("dentro"), Block("fim"))


def test_properties_of_word_name_the_author_and_if_need_be_the_title():
    document = docx.Document()
    document.add_paragraph("Texto")
    assert word(document) == Document("", (Block("Texto"),))  # what python-docx puts there is not said by anyone
    document.core_properties.author, document.core_properties.title = "Rita Lã", "Ana Silva"
    assert word(document) == Document("Ana Silva", (Block("Texto"),), metadata={"author": "Rita Lã"})
    document.element.body.insert(0, document.add_heading("Rita", 1)._p)
    assert word(document).title == "Rita"


def test_properties_that_word_did_not_write_are_not_made_up():
    document = bare_word()
    document.add_paragraph("Texto")
    with zipfile.ZipFile(io.BytesIO(save(document))) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if "core.xml" not in name}
    members["_rels/.rels"] = re.sub(rb"<Relationship [^>]*core.xml[^>]*>", b"", members["_rels/.rels"])
    assert read_document(".docx", zipped(members)) == Document("", (Block("Texto"),))


# PDF -----------------------------------------------------------------------------------------------------------------


def pdf(*pages: str, info: str = "") -> bytes:
    """A PDF that draws each line of each page with a standard font; one of no text draws a square."""
    font, kids = "3 0 R", " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>".encode(),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    ]
    for number, text in enumerate(pages):
        drawn = "".join(f"({line}) Tj T*\n" for line in text.split("\n")) if text else ""
        stream = (f"BT /F1 12 Tf 14 TL 72 720 Td\n{drawn}ET" if drawn else "9 9 99 99 re f").encode("cp1252")
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents {5 + 2 * number} 0 R"
            f"/Resources<</Font<</F1 {font}>>>>>>".encode()
        )
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream))
    objects.append(f"<<{info}>>".encode("cp1252"))
    content, offsets = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    content += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    content += b"trailer<</Size %d/Root 1 0 R/Info %d 0 R>>\n" % (len(objects) + 1, len(objects))
    return content + b"startxref\n%d\n%%%%EOF\n" % content.index(b"xref\n0 ")


def test_lines_of_a_pdf_have_their_pages():
    found = read_document(".pdf", pdf("A  campeã\nde Évora", "", "fim"))
    expected = [("A campeã", "page 1"), ("de Évora", "page 1"), ("fim", "page 3")]
    assert found == Document(lines=tuple(Fragment(*line) for line in expected))


@pytest.mark.parametrize(
    ("drawn", "read"),
    [
        ("jogou fute-\nbol em Évora", ["jogou futebol", "em Évora"]),
        ("jogou fute-\nbol", ["jogou futebol"]),
        ("a guarda-\n-redes da casa", ["a guarda-redes", "da casa"]),
        ("Rita-\nMaria", ["Rita-", "Maria"]),  # a name
        ("em 1994-\n1995", ["em 1994-", "1995"]),
        ("perdeu -\nmas ficou", ["perdeu -", "mas ficou"]),
        ("jogou fu\xadte\xad\nbol", ["jogou futebol"]),
        ("Évora\xad\nRita", ["Évora", "Rita"]),
    ],
)
def test_words_that_a_line_of_a_pdf_broke_are_joined(drawn, read):
    assert lines(read_document(".pdf", pdf(drawn))) == read


def test_words_that_a_page_broke_are_joined():
    found = read_document(".pdf", pdf("jogou fute-", "bol em casa"))
    assert found.lines == (Fragment("jogou futebol", "page 1"), Fragment("em casa", "page 2"))


@pytest.mark.parametrize(("blank", "read"), [("Um\n\n \nDois", ["Um", "", "Dois"]), ("\nUm\nDois\n", ["Um", "Dois"])])
def test_a_blank_line_of_a_pdf_ends_a_paragraph(monkeypatch, blank, read):
    """Whether the extraction gives any is pypdf's affair."""
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda self: blank)
    assert lines(read_document(".pdf", pdf("x"))) == read


def test_half_a_surrogate_pair_in_a_pdf_is_replaced(monkeypatch):
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda self: "Um \ud83d\udcaa dois \ud83d")
    assert lines(read_document(".pdf", pdf("x"))) == ["Um 💪 dois \ufffd"]


@pytest.mark.parametrize(
    ("stated", "title"),
    [
        ("Ana Silva, 1974", "Ana Silva, 1974"),
        ("Microsoft Word - ana.doc", ""),
        ("Microsoft Word - Ana Silva", ""),
        ("ana-silva_final.docx", ""),
        ("livro.indd", ""),
        ("Documento1", ""),
        ("Sem título", ""),
        ("untitled", ""),
        ("  ", ""),
        ("12-34", ""),
    ],
)
def test_title_of_a_pdf(stated, title):
    found = read_document(".pdf", pdf("Texto", info=f"/Title({stated})/Author(Rita)"))
    assert (found.title, found.metadata) == (title, {"author": "Rita"})


def test_a_title_that_a_pdf_stores_elsewhere_is_found():
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("Texto", info="/Author 3 0 R")))  # which is a font
    writer._info[pypdf.generic.NameObject("/Title")] = writer._add_object(pypdf.generic.TextStringObject("Ana Silva"))
    found = read_document(".pdf", save(writer))
    assert (found.title, found.metadata) == ("Ana Silva", {})


def test_a_pdf_of_pictures_is_refused():
    assert reason(".pdf", pdf("", "", "")) == "its 3 pages hold no text, only pictures: run OCR on it first"
    assert reason(".pdf", pdf("")) == "its only page holds no text, only pictures: run OCR on it first"
    assert reason(".pdf", pdf()) == "holds no text"


def encrypted(password: str, owner: str = "dona") -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("Texto de Évora")))
    writer.encrypt(password, owner, algorithm="RC4-128")
    return save(writer)


def test_a_locked_pdf_is_refused_and_one_without_a_password_is_read():
    assert lines(read_document(".pdf", encrypted(""))) == ["Texto de Évora"]
    assert reason(".pdf", encrypted("segredo")) == "is locked with a password: save it without one"


def test_a_pdf_that_only_another_library_could_decrypt_is_refused(monkeypatch):
    def missing(*_):
        raise pypdf.errors.DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr(pypdf.PdfReader, "decrypt", missing)
    assert reason(".pdf", encrypted("")) == "is locked with a password: save it without one"


# Plain text ----------------------------------------------------------------------------------------------------------


def test_lines_of_plain_text_have_their_numbers():
    content = "\n\n  Ana\u00a0 Silva\t⚽\r\n\r\n \t\r\nNasceu\rem Évora.\n\n".encode()
    expected = [("Ana Silva ⚽", "3"), ("", "4"), ("Nasceu", "6"), ("em Évora.", "7")]
    assert read_document(".txt", content) == Document(lines=tuple(Fragment(*line) for line in expected))


def test_plain_text_may_be_in_an_old_encoding():
    text = "A campeã de Évora não vendeu a opção: “custou” 30 €, e o João saiu em junho."
    assert lines(read_document(".txt", text.encode("cp1252"))) == [text]


# EPUB ----------------------------------------------------------------------------------------------------------------

CONTAINER = '<container><rootfiles><rootfile full-path="{}"/></rootfiles></container>'
CHAPTER = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{}</body></html>'


def book(
    chapters: dict[str, str],
    *,
    title: str = "<dc:title>⚽ As capitãs</dc:title>",
    guide: str = "",
    items: str = "",
    spine: str = "",
    more: dict[str, str] | None = None,
) -> bytes:
    manifest = "".join(
        f'<item id="{name}" href="{name.replace("ã", "%C3%A3")}" media-type="application/xhtml+xml"/>'
        for name in chapters
    )
    order = spine or "".join(f'<itemref idref="{name}"/>' for name in chapters)
    package = (
        f"<?xml version='1.0'?><package><metadata>{title}</metadata><manifest>{manifest}{items}</manifest>"
        f"<spine>{order}</spine><guide>{guide}</guide></package>"
    )
    members = {"META-INF/container.xml": CONTAINER.format("OEBPS/livro.opf"), "OEBPS/livro.opf": package}
    members |= {f"OEBPS/{name}": CHAPTER.format(body) for name, body in chapters.items()}
    return zipped(members | (more or {}))


def zipped(members: dict[str, str | bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return file.getvalue()


def test_a_book_is_its_chapters_in_the_order_of_the_spine():
    title = "<dc:title>⚽ As capitãs</dc:title><dc:creator>Rita Lã</dc:creator><dc:creator>Inês Sá</dc:creator>"
    chapters = {
        "capitã.xhtml": "<h1>Ana 🏆</h1><p>Nasceu.</p>",
        "b.xhtml": "<script src='x'/><h1>Rita</h1><p>Jogou.</p>",
    }
    spine = '<itemref idref="b.xhtml"/><itemref idref="capitã.xhtml"/>'
    assert read_document(".epub", book(chapters, title=title, spine=spine)) == Document(
        "As capitãs",
        (Block("Rita", 1), Block("Jogou."), Block("Ana", 1), Block("Nasceu.")),
        metadata={"author": "Rita Lã, Inês Sá"},
    )


def test_contents_and_cover_of_a_book_are_skipped():
    names = ("nav", "fora", "capa", "indice", "um")
    chapters = {f"{name}.xhtml": f"<p>{name}</p>" for name in names}
    items = (
        '<item id="n" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
        '<item id="s" href="capa.svg" media-type="image/svg+xml"/>'
    )
    spine = (
        '<itemref idref="n"/><itemref idref="s"/><itemref idref="fora.xhtml" linear="no"/><itemref idref="nada"/>'
        '<itemref idref="capa.xhtml"/><itemref idref="indice.xhtml"/><itemref idref="um.xhtml"/>'
    )
    guide = '<reference type="cover" href="capa.xhtml"/><reference type="toc" href="indice.xhtml#a"/>'
    assert texts(read_document(".epub", book(chapters, items=items, spine=spine, guide=guide))) == ["um"]


ENCRYPTION = "<encryption><enc:EncryptedData><enc:CipherReference URI='OEBPS/{}'/></enc:EncryptedData></encryption>"


def test_a_protected_book_is_refused_and_one_with_protected_fonts_is_not():
    def locked(name: str) -> bytes:
        return book({"a b.xhtml": "<p>Ana</p>"}, more={"META-INF/encryption.xml": ENCRYPTION.format(name)})

    assert reason(".epub", locked("a%20b.xhtml")) == "is protected (DRM) and cannot be read"
    assert texts(read_document(".epub", locked("letra.otf"))) == ["Ana"]


@pytest.mark.parametrize("name", ["../fora.xhtml", "/etc/fora", "a/../../b", "..\\fora", "C:/fora"])
def test_an_archive_that_names_what_is_outside_of_it_is_refused(name):
    assert "outside of itself" in reason(".epub", book({"a.xhtml": "<p>Ana</p>"}, more={name: "x"}))
    if not name.startswith("C"):
        assert "outside of itself" in reason(".epub", book({"../" + name: "<p>Ana</p>"}, more={}))


def test_what_a_book_lacks_is_the_reason():
    content = book({"a.xhtml": "<p>Ana</p>"}, spine='<itemref idref="x"/>', items=(
        '<item id="x" href="falta.xhtml" media-type="application/xhtml+xml"/>'))  # fmt: skip
    assert "falta.xhtml" in reason(".epub", content)
    assert "container" in reason(".epub", zipped({"a.txt": "Ana"}))
    assert "names no book" in reason(".epub", zipped({"META-INF/container.xml": "<container/>"}))


def large(content: bytes, size: int) -> bytes:
    """The archive with one member more, which says that it unpacks to `size` bytes."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("grande.bin", "x")
        archive.filelist[-1].file_size = size
    return file.getvalue()


def test_an_archive_that_unpacks_to_too_much_is_refused():
    for suffix, content in (".epub", SAMPLES[".epub"]), (".docx", SAMPLES[".docx"]):
        assert reason(suffix, large(content, 256 * 2**20)) == "unpacks to more than 256 MB"
        assert read_document(suffix, large(content, 200 * 2**20)).blocks


# Whatever the file is ------------------------------------------------------------------------------------------------


def samples() -> dict[str, bytes]:
    document = docx.Document()
    document.add_heading("⚽ Ana Silva", 0)
    document.add_paragraph("Nasceu em Évora.")
    document.add_paragraph("Capitã", style="List Bullet")
    document.add_table(2, 2).cell(0, 0).text = "Nome"
    html = (
        "<html><head><title>Clube</title></head><body><h1>Ana</h1><ul><li>Capitã<li>Évora</ul>"
        "<table><tr><td>Nome<td>Ana</table><p style='x'>Jogou&nbsp;<b>bem</b></p></body></html>"
    )
    return {
        ".md": (BIOGRAPHY + "\n| a | b |\n|-|-|\n| c | d |\n\n<div>x</div>\n\n```\ny\n```\n").encode(),
        ".txt": BIOGRAPHY.encode("cp1252", errors="ignore"),
        ".html": html.encode(),
        ".docx": save(document),
        ".pdf": pdf("Ana Silva\njogou fute-\nbol", "fim", info="/Title(Ana)"),
        ".epub": book({"a.xhtml": "<h1>Ana</h1><p>Nasceu.</p>", "b.xhtml": "<p>Jogou.</p>"}),
    }


SAMPLES = samples()


def well_made(document: Document) -> bool:
    """Whether what follows can rely on it: clean text, levels and something to read."""
    blocks = [block for block in document.blocks if block.text and 0 <= block.level <= 6]
    prose = [block.text for block in blocks if not (block.verbatim or "\n  " in block.text)]  # code, also in a list
    every_line = [line for text in (document.title, *prose, *lines(document)) for line in text.split("\n")]
    stripped = all(" ".join(line.split()) == line.lstrip(" ") for line in every_line)
    full = all(line.strip() for text in prose for line in text.split("\n"))
    return stripped and full and len(blocks) == len(document.blocks) and bool(document.blocks or document.lines)


def one_line(error: ValueError) -> bool:
    return type(error) is ValueError and bool(str(error)) and "\n" not in str(error) and " at 0x" not in str(error)


def damaged(content: bytes, case: int, rng: random.Random) -> bytes:
    """Cut short or with some bytes changed; every other archive has it done to a member, where no checksum tells."""
    if content.startswith(b"PK") and case % 2:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice([name for name in members if name.endswith(("document.xml", "styles.xml", "opf", "html"))])
        return zipped(members | {name: damaged(members[name], case // 2, rng)})
    if case % 4 == 0:
        return content[: len(content) * case // 200]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 5, 50])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("suffix", SAMPLES)
def test_a_damaged_file_is_a_document_or_a_reason(suffix, capfd, caplog):
    rng, outcomes = random.Random(7), set()
    for case in range(200):
        try:
            found = read_document(suffix, damaged(SAMPLES[suffix], case, rng))
            outcomes.add("read" if well_made(found) else f"ill made: {case}")
        except ValueError as error:
            outcomes.add("refused" if one_line(error) else repr(error))
    assert outcomes == {"read", "refused"}
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_the_samples_are_read_whole():
    for suffix, content in SAMPLES.items():
        found = read_document(suffix, content)
        assert well_made(found)
        assert "Ana" in found.title or suffix in (".txt", ".epub")


NO_TEXT = '<x:a xmlns:x="urn:oasis:names:tc:opendocument:xmlns:office:1.0"><x:text/></x:a>'


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_text_is_refused(suffix):
    empty = {".docx": lambda: save(docx.Document()), ".pdf": pdf, ".epub": lambda: book({"a.xhtml": "<p> </p>"})}
    blanks = {".html": b"<title>Clube</title><p>&nbsp;</p>", ".md": b"<!-- x -->\n\n---\n", ".ipynb": b'{"cells": []}'}
    blanks |= {".rtf": rb"{\rtf1\pard\par}", ".odt": zipped({"content.xml": NO_TEXT})}
    blank = blanks.get(suffix, b" \n\n")
    assert reason(suffix, empty[suffix]() if suffix in empty else blank) == "holds no text"


@pytest.mark.parametrize("suffix", [".docx", ".pdf", ".epub"])
@pytest.mark.parametrize("content", [b"", b"nada disto", b"\x00" * 500, zipped({"a": "b"})])
def test_a_file_that_is_something_else_is_refused(suffix, content):
    assert reason(suffix, content).startswith(f"cannot be read as {suffix}: ")


def test_another_office_file_is_refused_without_an_address_of_memory():
    spreadsheet = SAMPLES[".docx"]
    with zipfile.ZipFile(io.BytesIO(spreadsheet)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    types = members["[Content_Types].xml"].replace(b"wordprocessingml.document.main", b"spreadsheetml.sheet.main")
    error = reason(".docx", zipped(members | {"[Content_Types].xml": types}))
    assert error.startswith("cannot be read as .docx: file it is not a Word file")


def test_an_old_or_locked_word_file_is_refused():
    assert "locked with a password or an old .doc" in reason(".docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (MemoryError(), "more memory than there is"),
        (KeyError("/Root"), "cannot be read as .pdf: /Root"),
        (AssertionError(), "cannot be read as .pdf: AssertionError"),
        (ValueError("two\nlines" * 99), "cannot be read as .pdf: two lines"),
        (ImportError("no pypdf"), "a .pdf file needs the extra `formats`: uv sync --extra formats"),
    ],
)
def test_whatever_a_library_raises_is_a_reason(monkeypatch, raised, said):
    def fail(*_):
        raise raised

    monkeypatch.setattr(pypdf, "PdfReader", fail)
    found = reason(".pdf", b"%PDF-1.4")
    assert said in found
    assert "\n" not in found
    assert len(found) < 300


@pytest.mark.parametrize(
    ("suffix", "library"), [(".html", "bs4"), (".epub", "bs4"), (".docx", "docx"), (".pdf", "pypdf")]
)
def test_without_the_extra_its_formats_are_refused(monkeypatch, suffix, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert reason(suffix, SAMPLES[suffix]) == f"a {suffix} file needs the extra `formats`: uv sync --extra formats"


def test_another_suffix_is_refused():
    assert ".pages" in reason(".pages", b"x")
    assert "without a suffix" in reason("", b"x")


def test_libraries_are_silent_and_stay_as_they_were(capfd, recwarn):
    warnings.simplefilter("always")
    read_document(".pdf", pdf("Texto").replace(b"startxref\n", b"startxref\n9"))  # pypdf mends it, and says so
    read_document(".html", b"https://example.org/ana.html")  # bs4 thinks that an address was meant
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert logging.getLogger("pypdf").level == logging.NOTSET


def test_importing_it_is_cheap():
    libraries = {"bs4", "docx", "lxml", "markdown_it", "pypdf"}
    script = f"import sys, qlora_core.data.documents; print(sorted({libraries} & {{*sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("suffix", [".md", ".html"])
def test_a_long_heading_of_emoji_takes_no_time(suffix):
    """With the square of its length it would take hours."""
    heading = "⚽" * 200_000
    markup = f"# a{heading}a\n\nTexto" if suffix == ".md" else f"<h1>a{heading}a</h1><p>Texto"
    assert len(read_document(suffix, markup.encode()).title) == 200_002


@pytest.mark.parametrize("tag", [b"<!--", b"<a "])
def test_tags_that_never_end_are_given_up_at_once(tag):
    with pytest.raises(ValueError, match="is no HTML: most of its tags never end"):
        read_document(".html", b"<p>text</p>" + tag * 100_000)
