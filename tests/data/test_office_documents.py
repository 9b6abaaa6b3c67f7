"""OpenDocument and rich text, as LibreOffice, Word and TextEdit write them, and the notes of every such format."""

import io
import random
import re
import zipfile

import docx
import pytest
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from qlora_core.data.documents import read_document
from qlora_core.data.records import Block, Document


def packed(members: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def reason(suffix: str, content: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        read_document(suffix, content)
    return str(caught.value)


# OpenDocument --------------------------------------------------------------------------------------------------------

NAMESPACES = " ".join(
    f'xmlns:{short}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
    for short, name in (
        ("office", "office"), ("text", "text"), ("table", "table"), ("style", "style"), ("draw", "drawing"),
        ("meta", "meta"), ("number", "datastyle"), ("svg", "svg-compatible"),
    )
) + ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xlink="http://www.w3.org/1999/xlink"'  # fmt: skip

AUTOMATIC = """
<style:style style:name="P1" style:family="paragraph" style:parent-style-name="Title"/>
<style:style style:name="P2" style:family="paragraph" style:parent-style-name="Standard" style:list-style-name="L1"/>
<style:style style:name="T1" style:family="text"><style:text-properties/></style:style>
<text:list-style style:name="L1"><text:list-level-style-number text:level="1" style:num-suffix="." style:num-format="1"/>
<text:list-level-style-bullet text:level="2" text:bullet-char="•"/></text:list-style>
<text:list-style style:name="L2"><text:list-level-style-bullet text:level="1" text:bullet-char="•"/></text:list-style>
<number:number-style style:name="N0"><number:text>não é texto</number:text></number:number-style>
"""  # noqa: E501


def odt(body: str, meta: str = "", styles: str = "", manifest: str = "") -> bytes:
    """A text document in the parts that LibreOffice writes."""
    head = f'<?xml version="1.0" encoding="UTF-8"?>\n<office:document-{{}} {NAMESPACES} office:version="1.3">'
    content = (
        f"{head.format('content')}<office:scripts/><office:automatic-styles>{AUTOMATIC}</office:automatic-styles>"
        f"<office:body><office:text text:use-soft-page-breaks='true'><text:sequence-decls>"
        f"<text:sequence-decl text:name='Figura'/></text:sequence-decls>{body}</office:text></office:body>"
        "</office:document-content>"
    )
    return packed(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "content.xml": content,
            "styles.xml": f"{head.format('styles')}<office:styles>{styles}</office:styles></office:document-styles>",
            "meta.xml": f"{head.format('meta')}<office:meta>{meta}</office:meta></office:document-meta>",
            "META-INF/manifest.xml": f"<manifest>{manifest}</manifest>",
        }
    )


BODY = """
<text:table-of-content text:name="Índice1"><text:index-body><text:p>Carreira 3</text:p></text:index-body></text:table-of-content>
<text:p text:style-name="P1">Ana Silva</text:p>
<text:p text:style-name="Standard">Nasceu em <text:span text:style-name="T1">Évora</text:span><text:note text:id="ftn1"
 text:note-class="footnote"><text:note-citation>1</text:note-citation><text:note-body><text:p
 text:style-name="Footnote">Segundo o registo paroquial.</text:p></text:note-body></text:note>, no
 verão<text:s text:c="2"/>de<text:tab/>1931.<text:line-break/>Há quem diga 1932.</text:p>
<text:tracked-changes><text:changed-region><text:deletion><text:p>apagado</text:p></text:deletion></text:changed-region>
</text:tracked-changes>
<text:h text:style-name="Heading_20_1" text:outline-level="1"><text:bookmark-start text:name="x"/>Carreira<text:bookmark-end
 text:name="x"/></text:h>
<text:list text:style-name="L1"><text:list-item><text:p text:style-name="P2">Capitã</text:p><text:list><text:list-item>
<text:p>primeira época</text:p></text:list-item></text:list></text:list-item><text:list-item><text:p>Campeã</text:p>
</text:list-item></text:list>
<text:list text:style-name="L2"><text:list-item><text:p>rede</text:p></text:list-item></text:list>
<text:h text:outline-level="2">Números<office:annotation office:name="a1"><dc:creator>Rui</dc:creator><dc:date>2024</dc:date>
<text:p>confirmar!</text:p></office:annotation></text:h>
<table:table table:name="T"><table:table-column table:number-columns-repeated="2"/><table:table-header-rows>
<table:table-row><table:table-cell><text:p>Ano</text:p></table:table-cell><table:table-cell><text:p>Golos</text:p>
</table:table-cell></table:table-row></table:table-header-rows><table:table-row><table:table-cell><text:p>1931</text:p>
</table:table-cell><table:table-cell><text:p>9</text:p></table:table-cell></table:table-row></table:table>
<text:section text:name="S"><text:p>Fim.<text:note text:note-class="endnote"><text:note-citation>i</text:note-citation>
<text:note-body><text:p>Ver o anexo.</text:p></text:note-body></text:note></text:p></text:section>
<text:p><draw:frame draw:name="Imagem1"><draw:image xlink:href="Pictures/1.png"/><svg:desc>retrato</svg:desc></draw:frame></text:p>
<text:p><draw:frame><draw:text-box><text:p>Ao lado</text:p></draw:text-box></draw:frame></text:p>
"""  # noqa: E501


def test_an_opendocument_text_is_its_title_sections_lists_and_tables():
    meta = "<meta:initial-creator>Rita Lã</meta:initial-creator><dc:title>Outro</dc:title>"
    found = read_document(".odt", odt(BODY, meta))
    assert found == Document(
        "Ana Silva",
        (
            Block("Nasceu em Évora, no verão de 1931.\nHá quem diga 1932."),
            Block("Segundo o registo paroquial."),
            Block("Carreira", 1),
            Block("1. Capitã\n   - primeira época\n2. Campeã".replace("   ", "  ")),
            Block("- rede"),
            Block("Números", 2),
            Block("Ano: Golos\n1931: 9"),
            Block("Fim."),
            Block("Ver o anexo."),
        ),
        metadata={"author": "Rita Lã"},
        left_out=(("", "a comment", "confirmar!"), ("", "a text box", "Ao lado")),
    )
    (table,) = [block.table for block in found.blocks if block.table]
    assert table == (("Ano", "Golos"), ("1931", "9"))


def test_what_is_the_title_of_an_opendocument_text():
    heading = '<text:h text:outline-level="1">Ana</text:h><text:p>Jogou.</text:p>'
    assert read_document(".odt", odt(heading, "<dc:title>Outro</dc:title>")).title == "Ana"
    assert read_document(".odt", odt("<text:p>Jogou.</text:p>", "<dc:title>Ana Silva</dc:title>")).title == "Ana Silva"


def test_a_style_of_ones_own_counts_as_what_it_is_based_on():
    style = '<style:style style:name="Capítulo" style:family="paragraph" style:parent-style-name="Heading_20_2"/>'
    body = '<text:p text:style-name="Capítulo">Carreira</text:p><text:p>Jogou.</text:p>'
    found = read_document(".odt", odt(f"<text:p>Antes.</text:p>{body}", styles=style))
    assert found.blocks == (Block("Antes."), Block("Carreira", 2), Block("Jogou."))


def test_numbered_headings_of_older_programs_are_headings():
    nested = (
        "<text:p>Antes.</text:p><text:list text:style-name='L1'><text:list-item><text:list><text:list-item>"
        "<text:h text:outline-level='2'>Carreira</text:h></text:list-item></text:list></text:list-item></text:list>"
        "<text:p>Jogou.</text:p>"
    )
    assert read_document(".odt", odt(nested)).blocks == (Block("Antes."), Block("Carreira", 2), Block("Jogou."))


def test_a_locked_or_other_opendocument_file_is_refused():
    locked = "<file-entry><encryption-data/></file-entry>"
    assert reason(".odt", odt(BODY, manifest=locked)) == "is locked with a password: save it without one"
    assert "holds no text document" in reason(".odt", packed({"content.xml": "<office/>"}))
    assert reason(".odt", odt("")) == "holds no text"
    assert reason(".odt", b"").startswith("cannot be read as .odt: ")
    assert reason(".odt", packed({"content.xml": "<a>"})).startswith("cannot be read as .odt: ")


# Rich text -----------------------------------------------------------------------------------------------------------

WORD = rb"""{\rtf1\adeflang1025\ansi\ansicpg1252\uc1\adeff0\deff0\stshfdbch0{\fonttbl{\f0\fbidi \froman\fcharset0\fprq2{\*\panose 02020603050405020304}Times New Roman;}
{\f2\fbidi \fmodern\fcharset0 Courier;}{\f3\fbidi \froman\fcharset2\fprq2 Symbol;}{\f40\fbidi \froman\fcharset204 Times New Roman Cyr;}}{\colortbl;\red0\green0\blue0;}
{\*\defchp \f0}{\stylesheet{\ql \li0\ri0\widctlpar \rtlch\fcs1 \af0 \ltrch\fcs0 \fs24\lang2070 \snext0 \sqformat Normal;}
{\s1\ql \keepn\outlinelevel0 \b\fs32 \sbasedon0 \snext0 heading 1;}{\s2\ql \outlinelevel1 \b \sbasedon0 \snext0 heading 2;}
{\*\cs10 \additive \sunhideused Default Paragraph Font;}{\s15\ql \fs56 \sbasedon0 \snext0 Title;}{\s16\ql \sbasedon0 toc 1;}}
{\*\listtable{\list{\listlevel\levelnfc0{\leveltext\'02\'00.;}{\levelnumbers\'01;}}\listid1}}{\*\rsidtbl \rsid1}{\*\generator Microsoft Word 16;}
{\info{\title Outro t\'edtulo}{\author Rita L\'e3}{\operator Rui}{\creatim\yr2024\mo1\dy2\hr3\min4}{\*\company Clube}}
{\header \pard\plain cabe\'e7alho\par}{\footer \pard\plain {\field{\*\fldinst PAGE}{\fldrslt 1}}\par}
\pard\plain \s15\ql {\rtlch\fcs1 \af0 \ltrch\fcs0 Ana Silva\par }
\pard\plain \s16\ql {Carreira\tab 3\par }
\pard\plain \ql {Nasceu em \'c9vora, no ver\'e3o: n\'e3o foi \'e0 prociss\'e3o; a av\'f3 n\'e3o quis, nem o c\'f4nego.}{\cs17\super \chftn
{\footnote \ltrpar \pard\plain \s18\ql {\cs17\super \chftn }{ Segundo o registo paroquial.}}}{ A\'e7\'e3o.\par }
\pard\plain \s1\ql \outlinelevel0 {\b Carreira\par }
{\listtext\pard\plain\ltrpar \s17 \f0 1.\tab}\pard\plain \s17\ql \fi-360\li720\ls1 {Capit\'e3\par }
{\listtext\pard\plain\f3 \'b7\tab}\pard\plain \ql\ilvl1\ls2 {primeira \'e9poca\par }
{\listtext\pard\plain 2.\tab}\pard\plain \ql\ls1 {Campe\'e3\par }
\pard\plain {Ver {\field{\*\fldinst {HYPERLINK "https://example.org" }}{\fldrslt {\ul o s\'edtio}}}{\v escondido}{\deleted apagado} \u8364\'80 9 \ldblquote hoje\rdblquote  \u-10179?\u-8704?{\*\atnid RL}{\*\atnauthor Rui}\chatn {\*\annotation{\*\atndate 12}\pard\plain confirmar!}\par }
{\f40 \'cc\'ee\'f1\'ea\'e2\'e0\par}
\pard\plain \s2\outlinelevel1 {N\'fameros\par }
\trowd \trhdr\cellx1\cellx2\pard\plain \intbl {Ano\cell Golos\cell }\pard\plain \intbl {\trowd \trhdr\cellx1\cellx2\row }
\trowd \cellx1\cellx2\pard\plain \intbl {1931\par ou 1932\cell 9\cell }{\trowd\cellx1\cellx2\row }
\pard\plain {\pict{\*\picprop}\pngblip 89504e470d0a}{\shp{\*\shpinst\shpleft0{\sp{\sn shapeType}{\sv 202}}{\shptxt \pard\plain Ao lado\par}}}
Fim \{de\} C:\\rede\~a\_b.\par {\*\themedata 504b}{\*\datastore 0105}}"""  # noqa: E501


def test_rich_text_of_word_is_its_title_sections_lists_tables_and_notes():
    found = read_document(".rtf", WORD.replace(b"\n", b"\r\n"))
    assert found == Document(
        "Ana Silva",
        (
            Block("Nasceu em Évora, no verão: não foi à procissão; a avó não quis, nem o cônego. Ação."),
            Block("Segundo o registo paroquial."),
            Block("Carreira", 1),
            Block("1. Capitã\n  - primeira época\n2. Campeã"),
            Block("Ver o sítio € 9 “hoje” 😀"),
            Block("Москва"),
            Block("Números", 2),
            Block("Ano: Golos\n1931 ou 1932: 9"),
            Block("Fim {de} C:\\rede a-b."),
        ),
        metadata={"author": "Rita Lã"},
        left_out=(("", "a comment", "confirmar!"), ("", "a text box", "Ao lado")),
    )
    (table,) = [block.table for block in found.blocks if block.table]
    assert table == (("Ano", "Golos"), ("1931 ou 1932", "9"))


LIBREOFFICE = rb"""{\rtf1\ansi\deff3\adeflang1025
{\fonttbl{\f0\froman\fprq2\fcharset0 Times New Roman;}{\f3\froman\fprq2\fcharset0 Liberation Serif{\*\falt Times New Roman};}}
{\colortbl;\red0\green0\blue0;}
{\stylesheet{\s0\snext0\rtlch\af6\afs24\alang1081 \ltrch\lang1033\langfe2052\hich\af3\loch\widctlpar\cf0\f3\fs24\lang1033 Normal;}
{\s1\sbasedon15\snext16\rtlch\ab \ltrch\loch\ilvl0\outlinelevel0\b Heading 1;}
{\s16\sbasedon0\snext16\loch\sl276\slmult1\sb0\sa140 Body Text;}{\s26\sbasedon0 Footnote;}
{\*\cs17\snext17\super footnote reference;}}{\*\generator LibreOffice/25.2.5.2$MacOSX_AARCH64 LibreOffice_project/03d1}
{\info{\creatim\yr2025\mo10\dy23\hr16\min56}}{\*\userprops}\deftab709
\sectd\sbknone{\*\ftnsep\chftnsep}\pgndec\pard\plain \s1\rtlch\af6\afs24 \ltrch\loch\ilvl0\outlinelevel0\b{\loch
A liga\u231\'e7\u227\'e3o}
\par \pard\plain \s16\loch{\loch
Come\u231\'e7ou \u224\'e0s dez}{{\super\rtlch\alang1025\ltrch\loch\lang1044 \chftn{\*\footnote \chftn\pard\plain \s26\loch\f4\fs20{\loch
 }{\loch
Do rel\u243\'f3gio da torre.}
\par \pard\plain \s26\loch\f4\fs20
}}
}{\loch
. Depois\u8230\'85 o mar.}
\par \pard\plain \s16{\listtext\pard\plain  \u8226\'95\tab}\ilvl0\ls3 \fi-360\li720{\loch
rede}
\par \pard\plain \s16{\loch
No fim}{{\super \chftn{\*\footnote\ftnalt \chftn\pard\plain {\loch
 Uma nota final.}}}}{\loch
 veio a mar\u233\'e9.}
\par }"""  # noqa: E501


def test_rich_text_of_libreoffice():
    assert read_document(".rtf", LIBREOFFICE) == Document(
        "A ligação",
        (
            Block("Começou às dez. Depois… o mar."),
            Block("- rede"),
            Block("No fim veio a maré."),
            Block("Do relógio da torre."),
            Block("Uma nota final."),
        ),
    )


def test_a_note_of_a_heading_of_rich_text_stands_in_its_section():
    content = rb"{\rtf1 Antes.\par\pard\outlinelevel1 Mar\'e9{\footnote Alta.}\par\pard Sobe.\par}"
    assert read_document(".rtf", content).blocks == (
        Block("Antes."), Block("Maré", 2), Block("Sobe."), Block("Alta."),
    )  # fmt: skip


def test_rich_text_of_textedit():
    content = (
        rb"{\rtf1\ansi\ansicpg1252\cocoartf2761" b"\n"
        rb"\cocoatextscaling0\cocoaplatform0{\fonttbl\f0\fswiss\fcharset0 Helvetica;}" b"\n"
        rb"{\colortbl;\red255\green255\blue255;}{\*\expandedcolortbl;;}" b"\n"
        rb"\paperw11900\paperh16840\f0\fs24 \cf0 A mar\'e9 sobe \uc0\u224 s dez." b"\\\n\\\n"
        rb"Depois des\'e7e, \uc0\u55357 \u56832 ." b"}"
    )  # fmt: skip
    assert read_document(".rtf", content).blocks == (Block("A maré sobe às dez."), Block("Depois desçe, 😀."))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb"\mac A\'8d\'8bo", "Ação"),
        (rb"\pca a\'87\'c6o", "ação"),
        (rb"\ansicpg1251 \'ec\'e8\'f0", "мир"),
        (rb"\ansicpg65001 a\'c3\'a7\'c3\'a3o", "ação"),
        (rb"\ansicpg99999 a\'e7\'e3o", "ação"),
        (rb"\ansicpg932 \'8a\'43", "海"),
        (b"\\ansi a\xe7\xe3o", "ação"),
        (rb"\ansi {\uc2 a\u231 xx\u227\'e3\'e3o}", "ação"),
        (rb"a{\upr{ \'e7}{\*\ud{ \u231?}}}", "a ç"),
    ],
)
def test_letters_of_rich_text(written, read):
    assert [block.text for block in read_document(".rtf", b"{\\rtf1" + written + b"}").blocks] == [read]


def test_rich_text_that_breaks_off_is_read_and_named():
    cut = WORD[: WORD.index(b"ou 1932") + 7]
    found = read_document(".rtf", cut)
    assert found.blocks[-1] == Block("Ano: Golos\n1931 ou 1932") or "1931" in found.blocks[-1].text
    assert found.left_out[-1][1] == "breaks off before its end"


@pytest.mark.parametrize("content", [b"", b"nada", b"{\\rtf1}", b"{\\rtf1{\\info{\\title A}}}", b"{\\urtf1 a}"])
def test_rich_text_without_text_is_refused(content):
    said = reason(".rtf", content)
    assert said in ("holds no text", "cannot be read as .rtf: it does not begin as one")


@pytest.mark.parametrize("suffix", [".odt", ".rtf"])
def test_a_damaged_file_is_a_document_or_a_reason(suffix, capfd):
    rng, outcomes = random.Random(3), set()
    whole = odt(BODY) if suffix == ".odt" else WORD
    with zipfile.ZipFile(io.BytesIO(odt(BODY))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for case in range(200):
        broken = bytearray(members["content.xml"] if suffix == ".odt" and case % 2 else whole)
        for _ in range(rng.choice((1, 5, 40))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        content = bytes(broken[: rng.choice((len(broken), rng.randrange(1, len(broken))))])
        if suffix == ".odt" and case % 2:
            content = packed(members | {"content.xml": content})
        try:
            found = read_document(suffix, content)
            outcomes.add(bool(found.blocks) and all(block.text == block.text.strip() for block in found.blocks))
        except ValueError as error:
            outcomes.add(bool(re.fullmatch(r"[^\n]+", str(error))) and type(error) is ValueError)
    assert outcomes == {True}
    assert capfd.readouterr() == ("", "")


# Notes of Word -------------------------------------------------------------------------------------------------------


def noted(kind: str) -> bytes:
    """A file of Word with two notes, the parts of which are as Word writes them."""
    document = docx.Document()
    document.core_properties.author = document.core_properties.title = ""
    document.add_heading("Ana Silva", 0)
    notes = "".join(
        f'<w:{kind} w:id="{number}"{mark}><w:p><w:r><w:{kind}Ref/></w:r><w:r><w:t xml:space="preserve">{text}</w:t>'
        f"</w:r></w:p></w:{kind}>"
        for number, mark, text in (
            (-1, ' w:type="separator"', ""),
            (1, "", " Segundo o registo."),
            (2, "", " Ver o anexo."),
        )
    )
    part = Part(
        PackURI(f"/word/{kind}s.xml"),
        f"application/vnd.openxmlformats-officedocument.wordprocessingml.{kind}s+xml",
        f"<w:{kind}s {nsdecls('w')}>{notes}</w:{kind}s>".encode(),
        document.part.package,
    )
    document.part.relate_to(part, getattr(RELATIONSHIP_TYPE, f"{kind.upper()}S"))
    for number, heading in enumerate(("Origens", "Carreira"), 1):
        document.add_heading(heading, 1)
        paragraph = document.add_paragraph("Nasceu em Évora")
        mark = f'<w:r {nsdecls("w")}><w:{kind}Reference w:id="{number}"/></w:r>'
        paragraph._p.append(parse_xml(mark))
        paragraph.add_run(".")
        document.add_paragraph("E jogou.")
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["footnote", "endnote"])
def test_notes_of_word_stand_behind_the_text_of_their_section(kind):
    found = read_document(".docx", noted(kind))
    assert found.blocks == (
        Block("Origens", 1), Block("Nasceu em Évora."), Block("E jogou."), Block("Segundo o registo."),
        Block("Carreira", 1), Block("Nasceu em Évora."), Block("E jogou."), Block("Ver o anexo."),
    )  # fmt: skip
    assert found.left_out == ()


def test_comments_and_boxes_of_word_are_named():
    document = docx.Document()
    paragraph = document.add_paragraph("Jogou.")
    document.add_comment(paragraph.runs[0], text="confirmar!")
    box = "<w:pict><w:txbxContent><w:p><w:r><w:t>Ao lado</w:t></w:r></w:p></w:txbxContent></w:pict>"
    paragraph._p.append(parse_xml(f"<w:r {nsdecls('w')}>{box}</w:r>"))
    file = io.BytesIO()
    document.save(file)
    found = read_document(".docx", file.getvalue())
    assert [block.text for block in found.blocks] == ["Jogou."]
    assert found.left_out == (("", "a comment", "confirmar!"), ("", "a text box", "Ao lado"))
