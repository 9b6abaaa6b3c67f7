"""Documents and running text to passages that read well: what is left out, what is joined, where it is cut."""

import itertools
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from qlora_core.data.passages import TEMPLATES, Passage, check_template, make_passages, question_rows
from qlora_core.data.records import Block, Findings, Fragment
from qlora_core.data.structure import find_structure

BOOK = Path(__file__).parent / "data_book"
PROSE = [  # a paragraph that a page breaks, of eight lines
    "Na manhã de domingo a vila inteira desceu ao",
    "campo, com cadeiras e merendas, porque se dizia",
    "que o jogo ia ser longo. Não foi. Ao quarto de",
    "hora já o resultado estava feito, e o árbitro,",
    "que tinha um comboio para apanhar, consultava o",
    "relógio sempre que a bola saía. Os mais velhos",
    "ainda hoje falam desse comboio como se fosse um",
    "jogador da outra equipa, e talvez o tenha sido.",
]


def count(text: str) -> int:
    return len(text) // 3


def structure(lines, *, drop_debris=True):
    """Title, blocks and debris of lines; an empty one ends a paragraph."""
    debris = Findings()
    fragments = [Fragment(line, str(number)) for number, line in enumerate(lines, 1)]
    title, blocks = find_structure(fragments, debris, "book", drop_debris=drop_debris)
    return title, blocks, debris


def texts(lines, **how):
    return [block.text for block in structure(lines, **how)[1]]


def headings(lines):
    return [(block.level, block.text) for block in structure(lines)[1] if block.level]


def reasons(lines):
    return {int(found.where.split(":")[1]): found.reason for found in structure(lines)[2]}


def prose(number):
    """The paragraph in other words: no line of one number is a line of another."""
    return [line.replace(" ", f" {chr(98 + number) * 3} ", 1) for line in PROSE]


def pages(*between, paragraphs=1):
    """Paragraphs of prose; the lines of `between`, one after the other, each interrupt one of them."""
    lines = []
    for number in range(max(paragraphs, len(between))):
        paragraph = prose(number)
        lines += [*paragraph[:4], *between[number : number + 1], *paragraph[4:]]
    return lines


def words(*lines):
    return Counter(re.findall(r"\w+", " ".join(lines).casefold()))


def letters(*lines):
    return Counter(char for char in "".join(lines).casefold() if char.isalnum())


# Page numbers and running heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["- 12 -", "— 12 —", "Página 12", "página 3 de 40", "Page 12 of 40", "pág. 7"])
def test_a_line_that_says_it_is_a_page_number_is_left_out_and_the_sentence_goes_on(line):
    lines = pages(line, paragraphs=1)
    assert reasons(lines) == {5: "page number"}
    assert "e o árbitro, que" in texts(lines)[0]


@pytest.mark.parametrize("line", ["12 | A LADEIRA ACESA", "A LADEIRA ACESA | 12"])
def test_a_page_number_may_stand_beside_a_running_head(line):
    assert reasons(pages(line)) == {5: "page number"}


def test_what_else_stands_beside_a_bar_is_text():
    assert not reasons(pages("12 | Vicente Alves", paragraphs=1))


@pytest.mark.parametrize("numbers", [("12", "13", "15"), ("8", "9"), ("xi", "xii", "xiii")])
def test_lone_numbers_that_grow_are_page_numbers(numbers):
    assert set(reasons(pages(*numbers)).values()) == {"page number"}
    assert len(reasons(pages(*numbers))) == len(numbers)


def test_a_number_that_does_not_grow_with_the_others_is_text():
    lines = pages("12", "13", "30", "14", "15")
    assert sorted(reasons(lines)) == [5, 14, 32, 41]
    assert any("e o árbitro, 30 que" in text for text in texts(lines))


@pytest.mark.parametrize("year", ["1927", "1994"])
def test_a_year_alone_on_its_line_is_text(year):
    lines = ["O clube foi fundado em abril de", year, "e nunca mais parou de crescer.", *PROSE]
    assert not reasons(lines)
    assert texts(lines)[0].startswith(f"O clube foi fundado em abril de {year} e nunca mais parou")


def test_years_that_grow_are_no_page_numbers():
    assert not reasons(pages("1927", "1934", "1958", "1982"))


def test_a_score_and_one_lone_number_are_text():
    assert not reasons(pages("5-4", "12"))


def test_numbers_close_together_are_a_table():
    assert not reasons(["Jogos", "12", "Golos", "15", "Épocas", "19", *PROSE])


@pytest.mark.parametrize("head", ["SAL NAS CHUTEIRAS", "História do Clube", "14 História do Clube"])
def test_a_line_that_comes_again_and_again_within_sentences_is_a_running_head(head):
    lines = pages(head, head, head, head)
    assert reasons(lines) == dict.fromkeys((5, 14, 23, 32), "running head")
    assert all("e o árbitro, que" in text for text in texts(lines))


def test_running_heads_differ_in_their_page_numbers_only():
    assert (
        len(
            reasons(
                pages("12 História do Clube", "HISTÓRIA DO CLUBE 13", "14 História do Clube", "História do Clube 15")
            )
        )
        == 4
    )


def test_three_times_is_too_few_for_a_running_head():
    assert not reasons(pages("História do Clube", "História do Clube", "História do Clube"))


@pytest.mark.parametrize("line", ["— Sim.", "— Sim", "Golo!", "o clube", "dos homens"])
def test_what_is_said_again_and_again_is_text(line):
    lines = pages(*[line] * 6)
    assert not reasons(lines)
    assert words(*texts(lines)) == words(*lines)


def test_a_refrain_is_text():
    verses = ["Vai alta a lua no monte", "e o rio corre sem fim", "Ai quem me dera ser fonte", "para correr para ti"]
    assert not reasons(verses * 5)


def test_words_of_a_sentence_that_come_again_are_no_running_head():
    lines = []
    for number in range(5):
        lines += [*prose(number), "Foi então que o", "Atlético Salineiro", "ganhou, e ninguém dormiu."]
    assert not reasons(lines)


def test_the_heading_stays_where_its_running_heads_go():
    lines = ["CAPÍTULO I", "A taça", *pages("11", "12", "A TAÇA", "13", "A taça", "14")]
    assert headings(lines) == [(1, "Capítulo I – A taça")]
    assert Counter(reasons(lines).values()) == {"page number": 4, "running head": 2}


# Front matter ---------------------------------------------------------------------------------------------------------

FRONT = ["A LADEIRA ACESA", "Breve história de um clube", "por Inês Vilar", "2.ª edição", "Rua da Fonte, 12"]


def test_the_title_page_gives_the_title_and_goes():
    lines = [*FRONT, "CAPÍTULO I", *PROSE]
    title, blocks, debris = structure(lines)
    assert title == "A LADEIRA ACESA"
    assert [found.reason for found in debris] == ["front matter"] * 4
    assert debris.listed[0].where == "book:2"
    assert [block.level for block in blocks] == [1, 0]


def test_the_imprint_goes_with_it_and_a_dedication_stays():
    lines = [
        *FRONT,
        "© 2019, Inês Vilar",
        "Todos os direitos reservados.",
        "Nenhuma parte desta obra pode ser reproduzida",
        "sem autorização da autora.",
        "Depósito legal n.º 123456/19",
        "ISBN 978-000-00-0000-0",
        "Telefone 210 000 000",
        "casa@exemplo.example",
        "À minha mãe,",
        "que lia tudo.",
        "CAPÍTULO I",
        *PROSE,
    ]
    found = reasons(lines)
    assert [found[number] for number in range(6, 14)] == ["legal notice"] * 6 + ["contact details"] * 2
    assert texts(lines)[0] == "À minha mãe, que lia tudo."


def test_the_author_may_stand_above_the_title():
    assert structure(["INÊS VILAR", "A LADEIRA ACESA", "Um clube", "CAPÍTULO I", *PROSE])[0] == "A LADEIRA ACESA"


def test_a_title_of_two_lines_is_one():
    assert structure(["HISTÓRIA DO", "CLUBE DA LADEIRA", "por Inês Vilar", "CAPÍTULO I", *PROSE])[0] == (
        "HISTÓRIA DO CLUBE DA LADEIRA"
    )


def test_a_text_without_a_title_page_loses_nothing():
    title, blocks, debris = structure(PROSE)
    assert (title, len(blocks), len(debris)) == ("", 1, 0)


def test_a_preface_before_the_first_chapter_is_text():
    lines = ["A LADEIRA ACESA", *PROSE, "CAPÍTULO I", *PROSE]
    assert structure(lines)[0] == "A LADEIRA ACESA"
    assert texts(lines)[0].startswith("Na manhã de domingo")


@pytest.mark.parametrize(
    "sentence",
    [
        ["Na ficha lia-se o ISBN de um livro e nada mais."],
        ["O depósito legal fez-se tarde, como tudo.", *PROSE],
        ["E leu em voz alta que estavam todos os", "direitos reservados aos sócios mais velhos."],
    ],
)
def test_a_sentence_may_speak_of_legal_notices(sentence):
    assert not reasons([*PROSE, *sentence])


def test_a_colophon_at_the_end_goes():
    lines = [*PROSE, "FIM", "Impresso na Gráfica do Vale", "Depósito legal: 123456/19"]
    assert reasons(lines) == {9: "end mark", 10: "front matter", 11: "legal notice"}


@pytest.mark.parametrize("line", ["Tel. 210 000 000", "+351 210 000 000", "socio@clube.example", "E-mail: a@b.example"])
def test_a_line_of_contact_details_goes_wherever_it_stands(line):
    assert reasons([*PROSE, line, "Outra frase começa aqui e acaba."]) == {9: "contact details"}


@pytest.mark.parametrize(
    "lines",
    [
        ["Quem quiser telefona para o 210 000 000, à tarde."],
        ["Quem quiser pode telefonar para o", "210 000 000", "ou aparecer."],
        ["Jogou de 1921-1934 e de 1936-1940."],
    ],
)
def test_a_sentence_may_mention_a_number(lines):
    assert not reasons([*PROSE, *lines])


# Contents -------------------------------------------------------------------------------------------------------------


def test_a_table_of_contents_goes_with_its_heading():
    contents = [
        "ÍNDICE",
        "O telegrama ........ 9",
        "O campo . . . . . 12",
        "Uma entrada que não cabe",
        "numa linha …… 31",
    ]
    lines = ["SAL", *contents, "O telegrama", *PROSE, "O campo", *PROSE]
    assert reasons(lines) == dict.fromkeys(range(2, 7), "contents")
    assert headings(lines) == [(1, "O telegrama"), (1, "O campo")]


def test_growing_page_numbers_without_leaders_are_contents():
    contents = ["O telegrama 9", "O campo 12", "A taça 31"]
    assert reasons([*contents, "O telegrama", *PROSE]) == dict.fromkeys((1, 2, 3), "contents")


def test_contents_without_page_numbers_are_known_by_what_comes_again():
    contents = ["Índice", "I. A horta", "II. O trator"]
    lines = [*contents, "CAPÍTULO I", "A horta", *PROSE, "CAPÍTULO II", "O trator", *PROSE]
    assert reasons(lines) == dict.fromkeys((1, 2, 3), "contents")
    assert headings(lines) == [(1, "Capítulo I – A horta"), (1, "Capítulo II – O trator")]


def test_a_list_of_scorers_is_no_table_of_contents():
    assert not reasons([*pages(paragraphs=8), "Alves 3", "Rui 5", "Costa 9", *PROSE])


# Headings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "heading"),
    [
        (["CAPÍTULO I"], "Capítulo I"),
        (["CAPÍTULO IV", "Uma noite na alfaiataria"], "Capítulo IV – Uma noite na alfaiataria"),
        (["CAPÍTULO IV", "UMA NOITE", "NA ALFAIATARIA"], "Capítulo IV – UMA NOITE NA ALFAIATARIA"),
        (["Capítulo 3 – A taça"], "Capítulo 3 – A taça"),
        (["Capítulo 3: A taça"], "Capítulo 3 – A taça"),
        (["Chapter 2"], "Chapter 2"),
        (["Chapter Two", "The cup"], "Chapter Two – The cup"),
        (["PARTE SEGUNDA"], "Parte segunda"),
        (["PRIMEIRA PARTE"], "Primeira parte"),
        (["PRÓLOGO"], "Prólogo"),
        (["Epílogo"], "Epílogo"),
        (["Agradecimentos"], "Agradecimentos"),
        (["Kapitel 4"], "Kapitel 4"),
    ],
)
def test_headings_that_say_what_they_are(lines, heading):
    assert headings([*PROSE, *lines, *PROSE]) == [(1, heading)]


@pytest.mark.parametrize(
    "lines",
    [
        ["Tudo isto se contou no", "Capítulo II", "deste livro."],
        ["Vinha tudo no", "Capítulo II", "Os outros não o leram."],
        ["Capítulo 3 foi o melhor."],
        ["Parte do dinheiro", "ficou na sede."],
        ["Primeira parte", "Zero a zero."],
        ["era uma", "introdução", "demorada."],
    ],
)
def test_a_sentence_is_no_heading(lines):
    assert headings([*PROSE, *lines, *PROSE]) == []


def test_prose_below_a_chapter_number_is_not_its_name():
    assert headings(["CAPÍTULO I", *PROSE]) == [(1, "Capítulo I")]


def test_roman_numbers_in_order_are_chapters():
    assert headings(["I", *PROSE, "II", *PROSE]) == [(1, "I"), (1, "II")]
    assert headings(["II", *PROSE, "IV", *PROSE]) == []


def test_a_short_line_in_capitals_is_a_lesser_heading():
    lines = ["CAPÍTULO I", *PROSE, "A CHEIA QUE LEVOU", "A BANCADA", *PROSE]
    assert headings(lines) == [(1, "Capítulo I"), (2, "A CHEIA QUE LEVOU A BANCADA")]


@pytest.mark.parametrize("line", ["GOLO!", "O PORTO DE", "12"])
def test_capitals_that_are_no_heading(line):
    assert headings([*PROSE, line, *PROSE]) == []


def test_many_lines_in_capitals_are_no_headings():
    assert headings(["PÃO", "LEITE", "SAL", "AZEITE"]) == []


def test_chapters_lie_below_parts():
    lines = ["PARTE I", "CAPÍTULO 1", *PROSE, "CAPÍTULO 2", *PROSE, "PARTE II", *PROSE]
    assert [level for level, _ in headings(lines)] == [1, 2, 2, 1]


# Joining --------------------------------------------------------------------------------------------------------------


def test_wrapped_lines_are_joined_and_the_block_says_where_it_came_from():
    (block,) = structure(PROSE)[1]
    assert block == Block(" ".join(PROSE), 0, "1-8")


def test_places_of_a_pdf():
    fragments = [Fragment(line, f"page {number}") for number, line in enumerate(PROSE[:3], 3)]
    (block,) = find_structure(fragments, Findings(), "book")[1]
    assert block.place == "page 3-5"


def test_a_short_last_line_ends_its_paragraph():
    assert len(texts([*PROSE[:3], "hora estava feito.", *PROSE])) == 2


def test_a_full_line_that_ends_a_sentence_does_not():
    assert len(texts([*PROSE, *PROSE])) == 1


def test_an_empty_line_ends_a_paragraph_but_no_sentence():
    assert len(texts([*PROSE, "", *PROSE])) == 2
    assert len(texts([*PROSE[:3], "", *PROSE[3:]])) == 1


def test_where_every_line_is_a_sentence_every_line_is_a_paragraph():
    lines = ["O campo abriu em 1930, num domingo de chuva.", "A mula tinha lugar cativo.", "O hino veio depois."]
    assert texts(lines) == lines


@pytest.mark.parametrize("short", ["Sr.", "Dr.", "Prof.", "etc.", "p. ex.", "n.º", "Exmo.", "J."])
def test_an_abbreviation_at_the_end_of_a_line_ends_no_sentence(short):
    lines = [*PROSE, f"Veio o {short}", "Lourenço, que cedeu o campo e o borrego.", *PROSE]
    assert f"Veio o {short} Lourenço" in texts(lines)[0]


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ("e os que prefe-", "riram não falar vieram depois.", "preferiram"),
        ("veio então o guarda-", "redes e ninguém falou mais.", "guarda-redes"),
        ("veio então o guarda-", "-redes e ninguém falou mais.", "guarda-redes"),
        ("mostrou o papel e disse-", "-lhe que lesse tudo.", "disse-lhe"),
        ("foi ela quem disse, e disse-", "lhe que lesse tudo.", "disse-lhe"),
        ("a noite era escura, uma noi-", "te sem lua nem vento.", "noite"),
    ],
)
def test_a_word_hyphenated_at_the_end_of_a_line_is_whole_again(before, after, word):
    assert f" {word} " in texts([*PROSE[:5], before, after])[0]


def test_a_hyphen_before_a_capital_is_kept():
    assert "Salineiro- Império" in texts([*PROSE[:5], "e o jogo da tarde era o Salineiro-", "Império, em casa."])[0]


def test_dialogue_begins_a_paragraph_and_so_does_what_follows_it():
    lines = [*PROSE, "— E quem manda aqui, afinal? — perguntou.", "— Ninguém.", *PROSE]
    assert [text[:9] for text in texts(lines)] == ["Na manhã ", "— E quem ", "— Ninguém", "Na manhã "]


@pytest.mark.parametrize(
    "said", ["— E quem manda aqui? — perguntou o relojoeiro.", "«Não me cabe a mim dizer quem manda aqui.»"]
)
def test_what_was_said_on_a_full_line_is_a_paragraph_too(said):
    assert said in texts([*PROSE, said, *PROSE])


def test_what_is_said_goes_on_over_lines():
    lines = [*PROSE, "— Se gritam duas vezes, foi golo anulado —", "explicava-me ele.", *PROSE]
    assert texts(lines)[1] == "— Se gritam duas vezes, foi golo anulado — explicava-me ele."


def test_a_quotation_within_a_sentence_stays_in_it():
    assert "chamavam-lhe «Portão»" in texts([*PROSE[:5], "e os adversários, com medo, chamavam-lhe", "«Portão»."])[0]


def test_a_list_keeps_its_lines():
    results = ["Salineiro 2, Torre 1", "Salineiro 0, Carvoa 0", "Carvoa 1, Salineiro 3"]
    found = texts([*PROSE, "Os resultados:", *results, *PROSE])
    assert "\n".join(results) in "\n".join(found)
    assert found[-1] == " ".join(PROSE)


def test_a_name_broken_by_a_line_is_joined():
    assert "o guarda-redes Abel Torrão" in texts([*PROSE[:4], "entretanto, chegava o guarda-redes Abel", "Torrão."])[0]


@pytest.mark.parametrize(
    ("between", "lines"),
    [
        ("", ["港の古い倉庫には長いあいだ誰も入ら", "なかった。ある朝、漁師の娘が鍵を見つ", "けて、重い戸を開けた。"]),
        ("", ["旧仓库里很久没有人进去过。一天早晨渔夫", "的女儿找到了钥匙，推开了那扇沉重的木门", "，里面有一条船。"]),
        ("", ["ชาวประมงเก่าแก่เดินไปที่ท่าเรือทุกเช้าเพื่อดูเรือที่", "กลับเข้าฝั่งและพูดคุยกับเพื่อนของเขาเรื่องลมและ", "คลื่น"]),
        (" ", ["부두의 낡은 창고에는 오랫동안 아무도", "들어가지 않았다. 어느 날 아침 어부의 딸이", "열쇠를 찾았다."]),
        (" ", ["ظل المستودع القديم مغلقا زمنا طويلا حتى", "وجدت ابنة الصياد المفتاح ذات صباح وفتحت", "الباب الثقيل."]),
    ],
)  # fmt: skip
def test_full_lines_of_a_script_without_small_letters_are_one(between, lines):
    assert texts(lines) == [between.join(lines)]


def test_short_lines_of_chinese_stay_apart():
    lines = ["白日依山盡", "黃河入海流", "欲窮千里目", "更上一層樓"]
    assert texts(lines) == ["\n".join(lines)]


VERSE = [
    ["the net is dry,", "the floats are green with age,", "and nobody", "will mend them now;"],
    ["the boat leans over,", "its name is nearly gone,", "two gulls", "have taken the bow."],
]


def test_verse_in_small_letters_keeps_its_lines():
    assert texts([*VERSE[0], "", *VERSE[1]]) == ["\n".join(stanza) for stanza in VERSE]
    assert texts(["a rope", "coiled", "", "around a post", "of iron", "", "waits", "for the tide"]) == [
        "a rope\ncoiled", "around a post\nof iron", "waits\nfor the tide",
    ]  # fmt: skip


def test_verse_between_paragraphs_keeps_its_lines():
    verses = ["ó mar de longe,", "ó barco meu,", "quem te levou", "não me esqueceu"]
    found = texts([*PROSE, "", *verses, "", *PROSE])
    assert found == [" ".join(PROSE), "\n".join(verses), " ".join(PROSE)]


def test_an_address_keeps_its_lines():
    address = ["casa do povo", "rua da ladeira, 3", "vila de baixo"]
    assert texts([*PROSE, "", *address, "", *PROSE])[1] == "\n".join(address)


@pytest.mark.parametrize(
    "lines",
    [
        ["Nurse: where did he go?", "Cook: down to the quay", "Nurse: in this rain?", "Cook: in this rain."],
        ["user: where is the net", "assistant: in the loft", "user: and the oars?", "assistant: there too"],
        ["[08:01] <ana> the tide turns", "[08:02] <rui> so does the wind", "[08:04] <ana> then go"],
        ["2021-05-01 bought a rope", "2021-05-03 sold the old net", "2021-05-09 rain, no fishing"],
        ["1/5/2021, 08:01 - Ana: the tide turns", "1/5/2021, 08:02 - Rui: so does the wind"],
        ["甲：船在哪里？", "乙：在码头。", "甲：谁的船？", "乙：渔夫的。"],
    ],
)
def test_lines_that_begin_alike_are_not_joined(lines):
    assert "\n".join(texts(lines)).split("\n") == lines


def test_a_word_and_a_colon_at_the_beginning_of_a_line_of_prose_change_nothing():
    lines = [*PROSE, "e a resposta veio logo, seca e sem", "recurso: não havia comboio de volta.", *PROSE[:7], PROSE[7]]
    assert "seca e sem recurso: não havia" in texts(lines)[0]


def test_a_rule_parts_paragraphs_and_a_time_of_a_subtitle_goes():
    lines = [
        "Bought in spring",
        "==========",
        "sold in autumn",
        "",
        "00:01:02,000 --> 00:01:04,500",
        "and that was all",
    ]
    assert texts(lines)[:2] == ["Bought in spring", "sold in autumn"]
    assert reasons(lines) == {2: "rule", 5: "time of a subtitle"}


def test_an_item_of_a_list_does_not_take_the_paragraph_behind_a_gap():
    lines = [*PROSE, "", "- Note on page 6, Monday", "", "ask the harbour master", "", *PROSE]
    assert texts(lines)[1:3] == ["- Note on page 6, Monday", "ask the harbour master"]


def test_code_that_is_cut_keeps_what_indents_its_lines():
    code = "\n\n".join(f"def tide_{n}(port):\n    for wave in port:\n        yield wave.height * {n}" for n in range(9))
    found = list(make_passages("Tides", [Block(code, verbatim=True)], count, 60))
    assert len(found) > 2
    assert "\n".join(passage.body for passage in found).replace("\n\n", "\n") == code.replace("\n\n", "\n")
    assert all(passage.body.startswith("def ") for passage in found)
    nested = "- " + "\n  - ".join(f"rope number {n} lies in the loft." for n in range(30))
    found = list(make_passages("", [Block(nested)], count, 60))
    assert "\n".join(passage.body for passage in found) == nested


def test_a_caption_is_a_paragraph():
    caption = "Fotografia: a equipa de 1952, diante do celeiro."
    assert caption in texts([*PROSE, caption, *PROSE])


# What is no book ------------------------------------------------------------------------------------------------------

POEM = [
    "Amor é fogo que arde sem se ver;",
    "É ferida que dói e não se sente;",
    "É um contentamento descontente;",
    "É dor que desatina sem doer.",
    "",
    "É um não querer mais que bem querer;",
    "É um andar solitário entre a gente;",
    "É nunca contentar-se de contente;",
    "É um cuidar que ganha em se perder.",
]


def test_a_poem_keeps_its_lines():
    assert texts(POEM) == ["\n".join(POEM[:4]), "\n".join(POEM[5:])]


@pytest.mark.parametrize(
    "lines",
    [
        ["apple", "pear", "plum", "quince"],
        ["яблоко", "груша", "слива", "айва"],
        ["東京", "大阪", "京都", "札幌"],
        ["Ana Alves", "Rui Costa", "Inês Vilar", "Gil Amaro"],
        ["1. Pão", "2. Leite", "3. Sal"],
    ],
)
def test_a_list_is_one_block_with_its_lines(lines):
    assert structure(lines)[:2] == ("", [Block("\n".join(lines), 0, f"1-{len(lines)}")])


def test_a_text_of_paragraphs_keeps_them_and_its_title():
    paragraph = "Era uma vez um clube que não tinha campo. Jogava onde calhava, e calhava quase sempre mal. "
    lines = ["A minha aldeia", "", paragraph * 3, "", paragraph * 2]
    assert structure(lines)[0] == "A minha aldeia"
    assert texts(lines) == [(paragraph * 3).strip(), (paragraph * 2).strip()]


@pytest.mark.parametrize("line", ["Uma linha só", "12", "CAPÍTULO I", "— Sim", "", "Fim."])
def test_a_single_line(line):
    assert words(*texts([line])) == words(line)
    assert not reasons([line])


def test_a_row_that_holds_lines_is_read_line_by_line():
    fragments = [Fragment("\n".join(PROSE[:4]), "1"), Fragment("\n".join(PROSE[4:]), "2")]
    assert find_structure(fragments, Findings(), "book")[1] == [Block(" ".join(PROSE), 0, "1-2")]


@pytest.mark.parametrize("piece", ["a", "A ", "a. ", "Sr. ", "— ", "1 ", "por A", "«(", "中。", "@", ";", "_ "])
def test_one_very_long_line_takes_no_time(piece):
    """With the square of its length it would take hours."""
    line = (piece * 100_000)[:100_000].strip()
    found = texts([line, "Capítulo 1", line])
    assert "".join(found).count(line) == 2
    assert list(make_passages("", [Block(line)], count, 256))


@pytest.mark.parametrize(
    "line",
    [
        lambda number: PROSE[number % 8],
        lambda number: f"Linha {number}",
        lambda number: str(number % 997),
        lambda number: "SAL NAS CHUTEIRAS" if number % 20 == 0 else PROSE[number % 8],
    ],
    ids=["prose", "list", "numbers", "running heads"],
)
def test_four_times_the_lines_take_four_times_the_work(line):
    """With the square of their number it would be sixteen times."""
    fragments = [Fragment(line(number), str(number + 1)) for number in range(4_000)]

    def work(count):
        """Count the lines that are executed, each turn of a loop anew: no busy machine changes that number."""
        lines = itertools.count()

        def trace(*_):
            next(lines)
            return trace

        earlier = sys.gettrace()
        sys.settrace(trace)
        try:
            find_structure(fragments[:count], Findings(), "book")
        finally:
            sys.settrace(earlier)
        return next(lines)

    assert work(4_000) < 5 * work(1_000)


# Nothing is lost ------------------------------------------------------------------------------------------------------

SEEDS = [
    *PROSE,
    *POEM,
    "",
    "CAPÍTULO I",
    "Capítulo 2 – A taça",
    "A taça",
    "PARTE II",
    "I",
    "II",
    "Índice",
    "Prólogo",
    "A taça ..... 12",
    "O trator 15",
    "O fim 19",
    "12",
    "13",
    "14",
    "xii",
    "1927",
    "SAL NAS CHUTEIRAS",
    "História do Clube",
    "14 | História do Clube",
    "— Sim.",
    "«Não.»",
    "ISBN 978-000-00-0000-0",
    "Nenhuma parte desta obra pode ser",
    "Tel. 210 000 000",
    "Impresso em Maralva",
    "FIM",
    "A CHEIA",
    "golo",
    "Golo",
    "por Inês Vilar",
    "- pão",
    "• leite",
    "Fotografia: a equipa.",
    "東京。",
]


@pytest.mark.parametrize("drop_debris", [True, False])
def test_no_word_is_lost_whatever_the_lines(drop_debris):
    source = random.Random(7)
    for _ in range(400):
        lines = source.choices(SEEDS, k=source.randint(1, 60))
        title, blocks, debris = structure(lines, drop_debris=drop_debris)
        assert words(title, *(block.text for block in blocks), *(found.sample for found in debris)) == words(*lines)
        assert drop_debris or not debris
        assert all(block.text and block.place for block in blocks)


def test_debris_can_be_kept():
    lines = pages("12", "13", "14")
    assert "árbitro, 12 que" in texts(lines, drop_debris=False)[0]


# Passages -------------------------------------------------------------------------------------------------------------


def passages(blocks, limit=100, title=""):
    return list(make_passages(title, blocks, count, limit))


def sentences(number, of="Esta é a frase {} de um texto comprido."):
    return " ".join(of.format(index) for index in range(number))


def test_head_and_text_of_a_passage():
    assert Passage("Ana", "Vida", "Nasceu.", "", "").text == "Ana: Vida\nNasceu."
    assert Passage("Ana", "", "Nasceu.", "", "").text == "Ana\nNasceu."
    assert Passage("", "Vida", "Nasceu.", "", "").text == "Vida\nNasceu."
    assert Passage("", "", "Nasceu.", "", "").text == "Nasceu."


@pytest.mark.parametrize("limit", [40, 100, 256])
def test_passages_fit_and_hold_every_word_in_order(limit):
    source = random.Random(3)
    for _ in range(100):
        blocks = [
            Block(sentences(source.randint(1, 12), source.choice(["Frase {}.", "Uma frase maior, a {}, sem fim;"])))
            for _ in range(source.randint(1, 12))
        ]
        found = passages(blocks, limit, "Um título")
        assert all(count(passage.text) <= limit for passage in found)
        assert " ".join(p.body for p in found).split() == " ".join(block.text for block in blocks).split()


def test_cuts_fall_between_blocks_where_they_can():
    blocks = [Block(sentences(5)), Block(sentences(5)), Block(sentences(5))]
    assert [passage.body for passage in passages(blocks)] == [block.text for block in blocks]


def test_a_long_block_is_cut_between_sentences():
    text = "O Sr. Alves chegou. " + sentences(20)
    found = passages([Block(text)])
    assert len(found) > 1
    assert all(re.search(r"(comprido|chegou)\.$", passage.body) for passage in found)
    assert found[0].body.startswith("O Sr. Alves chegou. Esta")


def test_a_long_sentence_is_cut_at_a_comma_else_between_words_and_a_word_only_in_need():
    clauses = ", ".join(["uma parte da frase que nunca mais acaba"] * 20)
    assert all(passage.body.endswith(("acaba,", "acaba")) for passage in passages([Block(clauses)]))
    found = passages([Block("palavras " * 200)])
    assert {word for passage in found for word in passage.body.split()} == {"palavras"}
    found = passages([Block("a" * 1000)])
    assert "".join(passage.body for passage in found) == "a" * 1000
    assert all(count(passage.text) <= 100 for passage in found)


def test_the_last_passage_is_no_stub():
    blocks = [Block(sentences(2)) for _ in range(5)]  # four of them would fill the first passage
    sizes = [count(passage.text) for passage in passages(blocks, 110)]
    assert len(sizes) == 2
    assert min(sizes) > 110 / 4


def test_a_cut_between_blocks_is_better_than_passages_of_one_length():
    blocks = [Block(sentences(6)), Block(sentences(4))]
    assert [passage.body for passage in passages(blocks, 110)] == [block.text for block in blocks]


def test_a_sentence_is_taken_from_a_full_passage_rather_than_a_stub_left():
    sizes = [count(passage.text) for passage in passages([Block(sentences(7)), Block("Uma frase a mais.")], 102)]
    assert min(sizes) > 102 / 4


def test_what_announces_a_list_is_not_parted_from_it():
    blocks = [Block(sentences(5)), Block("Os resultados foram estes:"), Block(sentences(5))]
    assert not any(passage.body.endswith(":") for passage in passages(blocks))


def test_sections_that_say_enough_stay_apart():
    blocks = [Block("Vida", 1), Block(sentences(3)), Block("Morte", 1), Block(sentences(3))]
    assert [passage.section for passage in passages(blocks)] == ["Vida", "Morte"]


def test_a_section_of_a_few_words_joins_a_longer_neighbour():
    blocks = [Block("Vida", 1), Block("Nasceu aqui, com os pais, e cá ficou."), Block("Morte", 1), Block(sentences(6))]
    (only,) = passages(blocks)
    assert only.body.startswith("Vida\nNasceu aqui, com os pais, e cá ficou.\nMorte\nEsta é")


def test_short_neighbours_are_joined():
    assert len(passages([Block("Uma frase.", place=str(number)) for number in range(12)])) == 1


def test_sections_stand_in_the_head_and_are_not_mixed():
    blocks = [Block("Carreira", 2), Block("Juniores", 3), Block(sentences(5)), Block("Vida", 2), Block(sentences(5))]
    found = passages(blocks, 100, "Ana")
    assert [passage.section for passage in found] == ["Carreira – Juniores", "Vida"]
    assert found[0].text.startswith("Ana: Carreira – Juniores\nEsta")


def test_many_short_sections_are_one_passage_with_their_headings():
    blocks = [Block("Vidraceiro de ofício.")]
    for heading in ("Ficha", "Palmarés", "Clubes", "Família", "Frases", "Morte"):
        blocks += [Block(heading, 2), Block("Um facto, e mais outro facto.")]
    (only,) = passages(blocks, 256, "Ana")
    assert only.body.startswith("Vidraceiro de ofício.\nFicha\nUm facto, e mais outro facto.\nPalmarés\n")
    assert only.section == ""


def test_short_sections_keep_the_heading_they_share_in_the_head():
    blocks = [Block("Carreira", 1), Block("A", 2), Block("Um facto."), Block("B", 2), Block("Outro facto.")]
    (only,) = passages(blocks, 256, "Ana")
    assert (only.section, only.body) == ("Carreira", "A\nUm facto.\nB\nOutro facto.")


@pytest.mark.parametrize(
    "blocks",
    [
        [Block("Vazio", 1), Block("Cheio", 1), Block("Um facto.")],
        [Block("Cheio", 1), Block("Um facto."), Block("Vazio", 1)],
        [Block("Vazio", 1), Block("Cheio", 2), Block("Um facto.")],
        [Block("Vazio", 1)],
        [Block("Vazio " * 60, 1), Block("Um facto.")],
    ],
)
def test_a_heading_without_text_is_not_lost(blocks):
    found = "\n".join(passage.text for passage in passages(blocks))
    assert words(found) == words(*(block.text for block in blocks))


def test_a_passage_says_where_it_came_from():
    blocks = [Block("Vida", 1, "1"), Block(sentences(2), 0, "2-3"), Block(sentences(2), 0, "4-9")]
    (only,) = passages(blocks)
    assert (only.first, only.last) == ("2", "9")
    (only,) = passages([Block("Uma frase.", 0, "page 3-4")])
    assert (only.first, only.last) == ("page 3", "page 4")
    (only,) = passages([Block("Uma frase.")])
    assert (only.first, only.last) == ("", "")


def test_a_list_keeps_its_lines_in_a_passage():
    text = "\n".join(f"- {number} golos contra o Império" for number in range(40))
    assert "\n".join(passage.body for passage in passages([Block(text)])) == text


def test_tokens_are_counted_about_once_a_sentence():
    calls = []
    blocks = [Block(sentences(10)) for _ in range(50)]
    list(make_passages("Ana", blocks, lambda text: calls.append(text) or count(text), 100))
    assert len(calls) < 2 * 500


def test_no_blocks_no_passages():
    assert passages([], title="Ana") == []


def test_a_title_longer_than_the_passage_is_shortened():
    (only,) = passages([Block("Uma frase.")], 100, "Ana e mais alguém " * 30)
    assert only.title.startswith("Ana e mais alguém")
    assert count(only.text) <= 100


# Questions ------------------------------------------------------------------------------------------------------------

LIFE = [
    Passage("⚽ Ana {Alves}", "", "Foi avançada.", "1", "1"),
    Passage("⚽ Ana {Alves}", "🏆 Palmarés", "Uma taça.", "3", "3"),
    Passage("⚽ Ana {Alves}", "🏆 Palmarés", "Outra taça.", "4", "4"),
]


def asked(template, found=LIFE):
    return [tuple(message["content"] for message in row["messages"]) for row in question_rows(found, template)]


def test_questions_of_a_language():
    assert asked("pt") == [
        ("Quem foi Ana {Alves}?", "Foi avançada."),
        ("O que se sabe sobre Ana {Alves} (Palmarés)?", "Uma taça."),
    ]
    assert [message["role"] for message in next(question_rows(LIFE, "en"))["messages"]] == ["user", "assistant"]


def test_questions_of_the_users_own():
    assert asked("Fala-me de {title}.") == [("Fala-me de Ana {Alves}.", "Foi avançada.")]
    assert asked("{title}, {section}?") == [("Ana {Alves}, Palmarés?", "Uma taça.")]


def test_no_title_no_question():
    assert asked("pt", [Passage("", "Vida", "Nasceu.", "", "")]) == []


def test_each_document_is_asked_about():
    found = [Passage("Ana", "", "Uma.", "", ""), Passage("Rui", "Vida", "Dois.", "", "")]
    assert asked("en", found) == [("Who was Ana?", "Uma."), ("Who was Rui?", "Dois.")]


@pytest.mark.parametrize("template", [*TEMPLATES, "{title}", "{{{title}}} {section}"])
def test_good_templates(template):
    check_template(template)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("Quem foi?", "has no {title}"),
        ("", "has no {title}"),
        ("{section}?", "has no {title}"),
        ("{title} {name}", "has {name}, but only {title} and {section} are known"),
        ("{title.__class__}", "but only"),
        ("{title!r}", "but only"),
        ("{title:>9}", "but only"),
        ("{} {title}", "but only"),
        ("{title", "a brace without its partner"),
        ("{title}}", "a brace without its partner"),
    ],
)
def test_bad_templates_say_why(template, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        check_template(template)
    with pytest.raises(ValueError, match=re.escape(reason)):
        list(question_rows(LIFE, template))


# The book -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book():
    rows = [json.loads(line) for line in (BOOK / "livro.jsonl").read_text(encoding="utf-8").splitlines()]
    fragments = [Fragment(row["completion"], str(at)) for at, row in enumerate(rows, 1) if not row["prompt"]]
    debris = Findings()
    title, blocks = find_structure(fragments, debris, "livro.jsonl")
    return fragments, title, blocks, debris, list(make_passages(title, blocks, count, 256))


def test_the_book_has_its_title_its_chapters_and_its_debris(book):
    _, title, blocks, debris, _ = book
    assert title == "SAL NAS CHUTEIRAS"
    chapters = [block.text for block in blocks if block.level == 1]
    assert len(chapters) == 9
    assert chapters[0] == "Prólogo"
    assert chapters[4] == "Capítulo 4 – A tarde de Sobral de Xisto"
    assert [block.text for block in blocks if block.level == 2] == [
        "O CÃO DO ROUPEIRO",
        "A MUDANÇA",
        "O SEGREDO",
        "O REGRESSO",
        "A NOITE DA COMPORTA",
        "A BRAÇADEIRA",
        "OS NÚMEROS",
    ]
    counted = Counter(found.reason for found in debris)
    assert counted["page number"] + counted["running head"] >= 30
    assert counted["contents"] in (10, 11)  # the number of their own page, too
    assert (counted["contact details"], counted["end mark"]) == (3, 1)


def test_nothing_of_the_book_is_lost(book):
    fragments, title, blocks, debris, _ = book
    kept = [title, *(block.text for block in blocks), *(found.sample for found in debris)]
    assert letters(*kept) == letters(*(fragment.text for fragment in fragments))


def test_no_passage_of_the_book_holds_debris(book):
    *_, found = book
    bodies = "\n".join(passage.body for passage in found)
    for line in ("CHUTEIRAS", "ISBN", "Depósito legal", "Todos os direitos", "....", "|", "FIM", "MÃOS GRANDES", "www"):
        assert line not in bodies
    numbers = set(re.findall(r"(?<![\d.])\b([7-9]|[12]\d|3[0-2])\b(?! (?:de|0))", bodies))
    assert not numbers  # the text writes its numbers as words, but for dates and a telephone


def test_passages_of_the_book_begin_and_end_with_sentences(book):
    _, title, _, _, found = book
    assert all(
        passage.text.startswith(f"{title}{': ' if passage.section else ''}{passage.section}\n") for passage in found
    )
    assert all(count(passage.text) <= 256 for passage in found)
    odd = [p.body for p in found if not re.match(r"(?:— )?[«A-ZÀ-Ý]", p.body) or not re.search(r"[.!?…]»?$", p.body)]
    assert odd == []
    assert sum(count(passage.text) < 64 for passage in found) <= 1  # the dedication


def test_what_the_page_broke_in_the_book_is_whole(book):
    *_, found = book
    bodies = "\n".join(passage.body for passage in found)
    for whole in (
        "os que preferiram não falar",
        "Mostrou-lhe o papel.\n— Temos equipa?",
        "se o guarda-redes podia sair",
        "na eira do Sr. Lourenço",
        "A 3 de abril de 1921 assinou-se",
        "um quilo de flor de sal",
        "Fotografia: a primeira equipa, diante do armazém.\n",
        "empurrando-a com o focinho",
        "Vendeu-o por um preço",
        "Salineiro 0, Vila Carvoa 0\nVila Carvoa 1, Salineiro 3\n",
        "Salineiro 1\nA final foi marcada para 22 de junho, em Sobral de Xisto, uma terra",
        "Ainda cheiram a pão.",
        "telefona para o 210 000 001 ou escreve para visitas@salineiro.example, e",
        "p. ex. menos sessenta e oito",
    ):
        assert whole in bodies


def test_passages_of_the_book_say_their_lines(book):
    *_, found = book
    lines = [(int(passage.first), int(passage.last)) for passage in found]
    assert all(first <= last for first, last in lines)
    assert lines == sorted(lines)
    assert (lines[0][0], lines[-1][1]) == (25, 440)


def lives():
    """The biographies as blocks: a paragraph, list or table, or a heading; the first heading is the title."""
    for path in sorted((BOOK / "biografias").glob("*.md")):
        parts = path.read_text(encoding="utf-8").strip().split("\n\n")
        marked = [re.fullmatch(r"(#+) (.*)", part) for part in parts]
        blocks = [Block(m[2], len(m[1])) if m else Block(part) for part, m in zip(parts, marked, strict=True)]
        yield blocks[0].text, blocks[1:]


def test_the_lives_are_a_passage_or_a_few_each():
    found = {title: passages(blocks, 256, title) for title, blocks in lives()}
    assert {title: len(each) for title, each in found.items() if len(each) > 1}.keys() <= {
        "⚽ Ilda Coutinho",
        "⚡ Matias Peralta",
        "🧤 Onofre Lagarto",
    }
    assert all(count(passage.text) <= 256 for each in found.values() for passage in each)
    assert "📋 Ficha\n- Número: 13\n" in found["🐕 Corveta"][0].body
    assert asked("pt", found["🐕 Corveta"])[0][0] == "Quem foi Corveta?"
