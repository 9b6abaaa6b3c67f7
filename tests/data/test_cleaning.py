"""Repairs that keep what the writer meant, and what is flagged for a look."""

import random
import sys
import threading
import unicodedata

import pytest

from qlora_core.data import cleaning
from qlora_core.data.cleaning import clean, language_of, personal_data
from qlora_core.errors import DataError

# Repairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repair", [True, False])
def test_line_ends_and_the_white_space_around_are_no_repair(repair):
    assert clean(" \t um\r\ndois\rtrês \n\xa0", repair) == ("um\ndois\ntrês", ())


@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize(
    "code",
    [
        "    total += wave\n    return total",
        "    return total",
        "\treturn total",
        "  yield wave",
        "        break\n    return waves\n\ndef tide():\n    pass",
        "    moor()\nprint(boat)",
        "  - oars\n  - rope",
    ],
)
def test_what_indents_the_first_line_of_code_stays(code, repair):
    assert clean(f"\n \n{code}\n\n", repair) == (code, ())


@pytest.mark.parametrize(
    "text", [" yes", " Yes:\n  - oars", "  Yes.\nNo.", "  Yes.", " \t yes", "\u3000昔", "\xa0\xa0yes"]
)
def test_white_space_that_indents_nothing_goes(text):
    assert clean(text) == (text.strip(), ())


@pytest.mark.parametrize("repair", [True, False])
def test_nul_goes_whatever_was_asked_for(repair):
    assert clean("\0 u\0m", repair) == ("um", ("control characters",))


def test_without_repair_nothing_else_is_touched():
    text = "ConceiÃ§Ã£o cafe\u0301 \u200b\x93\ufffd"
    assert clean(text, repair=False) == (text, ())


@pytest.mark.parametrize(
    ("damaged", "meant"),
    [
        ("ConceiÃ§Ã£o", "Conceição"),
        ("ConceiÃƒÂ§ÃƒÂ£o", "Conceição"),
        ("â€œOlÃ¡â€\x9d, dâ€™Ã¡gua", "“Olá”, d’água"),
        ("Não é isso, nÃ£o", "Não é isso, não"),
        ("vou Ã\xa0 praia", "vou à praia"),
        ("vou Ã praia", "vou à praia"),
        ("SÃ”NIA", "SÔNIA"),
        ("O AVÃ” NÃƒO VEIO", "O AVÔ NÃO VEIO"),
        ("−5 Â°C, Â«simÂ»", "−5 °C, «sim»"),
        ("ðŸ˜€", "😀"),
        ("\x93Ol\xe1\x94 \x96 \x93MANH\xc3\x94\x85", "\u201cOl\xe1\u201d \u2013 \u201cMANH\xc3\u201d\u2026"),
        ("wod\xc4\x99", "wodę"),
        ("coraĂ§ĂŁo", "coração"),
        ("cora├º├úo", "coração"),
        ("cora√ß√£o", "coração"),
        ("Itâ€™s", "It’s"),
        ("It‚Äôs", "It’s"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
        ("РџСЂРёРІРµС‚", "Привет"),
    ],
)
def test_text_that_was_decoded_wrongly_is_mended(damaged, meant):
    assert clean(damaged) == (meant.replace("\xa0", " "), ("encoding",))


@pytest.mark.parametrize(
    "text",
    [
        "José…",
        "ATENÇÃO», disse",
        "Sabará»",
        "NÃO É",
        "à “praça”",
        "«Não é possível», disse o avô – às 8 h – “é só à noite”…",
        "\u201cAMANH\xc3\u201d, disse",
        "\xabA IRM\xc3\xbb",
        "A MANHÃ… E A MAÇÃ — SÓ",
        "A MANHÃ\xa0» e",
        "JOSÉ² e CAFÉ®",
        "d’água, 5 €, 1.º, 2.ª, 30 °C, ½, §",
        "É «À la carte» où naît l’œuvre",
        "¿Qué año? ¡Mañana!",
        "Größe, Ärger – „schön“",
        "Zażółć gęślą jaźń, příliš žluťoučký kůň",
        "Вчера в «СССР» мы ходили в\xa0кино…",
        "Χθες πήγαμε στον κινηματογράφο",
        "昨天我们去电影院、映画を見ました。",
        "├── árvore\n└── ramo √2 ≈ 1,41",
        "curly “quotes”, ﬁne, ｗｉｄｅ, &amp; &eacute;",
        "👨‍👩‍👧 می‌خواهم क्‍ष a\u2060b",
        "col\tuna\n\nlinha",
    ],
)
def test_text_that_is_right_stays_as_it_is(text):
    assert clean(text) == (text, ())


def test_each_accent_before_each_punctuation_mark_stays():
    """As words end. ftfy alone changes some of these."""
    marks = ("»", "”", "’", "…", "–", "—", "»,", "”.", "…”", "’”", "\xa0»")
    for low in "áàãéêíóôõúüç":
        for mark in marks:
            for text in (f"disse «irm{low}{mark}", f"“IRM{low.upper()}{mark} É", f"“{low.upper()}{mark[-1]}"):
                assert clean(text) == (text, ())


def test_composed_letters():
    assert clean("a\u0301rea") == ("área", ("Unicode form",))
    assert clean("\u1f71") == ("\u03ac", ("Unicode form",))
    assert clean("m²") == ("m²", ())  # NFKC would make it m2


@pytest.mark.parametrize(
    "code", [0x01, 0x08, 0x0E, 0x1B, 0x1F, 0x7F, 0xAD, 0x200B, 0x202A, 0x202E, 0x2066, 0x2069, 0xFEFF]
)
def test_control_characters_go(code):
    assert clean(f"ma{chr(code)}nhã") == ("manhã", ("control characters",))


@pytest.mark.parametrize("code", [0x81, 0x8D, 0x9D])
def test_a_c1_character_that_stands_for_nothing_goes(code):
    assert clean(f"a{chr(code)}b") == ("ab", ("control characters",))


@pytest.mark.parametrize("code", [0x0B, 0x0C, 0x85, 0x2028, 0x2029])
def test_other_line_ends_become_line_feeds(code):
    assert clean(f"um{chr(code)}dois") == ("um\ndois", ("control characters",))


def test_lost_characters_are_only_reported():
    assert clean("Jo\ufffdo") == ("Jo\ufffdo", ("lost characters",))
    assert clean("Jo\ufffdo\0") == ("Jo\ufffdo", ("control characters", "lost characters"))


def test_a_repair_may_uncover_another_and_each_kind_is_named_once():
    assert clean("Ã\u200b§\u200b e\u200b\u0301") == ("ç é", ("control characters", "encoding", "Unicode form"))
    assert clean("\xa0Ã§") == ("ç", ("encoding",))
    assert clean("\u200b Ã praia") == ("à praia", ("control characters", "encoding"))


NASTY = [*"abzAÃÂâãéÉÍÑ√├‚ÄΓÇðРв€§£©»”“’…–—\xa0 .,\n\r\t\0\x0b\x1c\x81\x85\x8d\x93\xad", "\u0301", "\u0344", "\u0958"]
NASTY += [
    "\u200b",
    "\u200d",
    "\u2028",
    "\u202e",
    "\ufeff",
    "\ufffd",
    "\ud800",
    "\udc00",
    "\U0001f600",
    "Ã§",
    "â€",
    "Ãƒ",
]


def test_cleaning_again_changes_nothing():
    drawn = random.Random(7)
    for _ in range(600):
        pieces = [drawn.choice(NASTY) if drawn.random() < 0.9 else chr(drawn.randrange(0x110000)) for _ in range(9)]
        text = "".join(pieces)
        for repair in (True, False):
            once, _ = clean(text, repair)
            again, kinds = clean(once, repair)
            assert (again, set(kinds) - {"lost characters"}) == (once, set()), ascii(text)
            assert "\0" not in once
            assert "\r" not in once
        once, _ = clean(text)
        assert unicodedata.is_normalized("NFC", once)
        assert not set(once) & set("\x0b\x1c\x81\x85\x8d\xad\u200b\u2028\u202e\ufeff"), ascii(text)


# Personal data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["maria@example.com", "Escreva para ana.silva+x@sapo.pt.", "<a@b.co>", "joão@açores.pt", "A@B-C.COM.BR"]
)
def test_addresses_are_found(text):
    assert personal_data(text) == ("e-mail address",)


@pytest.mark.parametrize(
    "text", ["a@b", "@ana", "a @ b.pt", "user@localhost", "icon@2x.png", "3@1.5", "a@b..pt", "@ana@mastodon.social"]
)
def test_other_uses_of_the_at_sign_are_no_address(text):
    assert personal_data(text) == ()


@pytest.mark.parametrize(
    "number",
    [
        "239 123 456",
        "239-123-456",
        "912.345.678",
        "912\xa0345\xa0678",
        "912345678",
        "91 234 56 78",
        "21 123 4567",
        "21 1234567",
        "+351 912 345 678",
        "+351912345678",
        "(+351) 239123456",
        "00351 912 345 678",
        "351 912 345 678",
        "(11) 91234-5678",
        "(202) 555-0123",
        "+1 (202) 555-0123",
        "06 12 34 56 78",
        "020 7946 0958",
        "+44 20 7946 0958",
        "030 12345678",
    ],
)
def test_telephone_numbers_are_found(number):
    for text in (number, f"Ligue {number}, em 1974.", f"Em 1974: {number}.", f"({number} / 12)"):
        assert personal_data(text) == ("telephone number",)


@pytest.mark.parametrize("label", ["Tel. {}", "Tel:{}", "telefone n.º {}", "TELEMÓVEL {}", "fax: {}"])
@pytest.mark.parametrize("number", ["21 123 45 67", "239123456", "2391 23456"])
def test_after_its_label_a_number_may_be_grouped_in_any_way(label, number):
    assert personal_data(label.format(number)) == ("telephone number",)


@pytest.mark.parametrize(
    "text",
    [
        "1974-1975 1980",
        "de 1974 a 1980, 1914-1918 1939-1945",
        "2019/2020 2020/2021",
        "(11) 2014-2015",
        "10 000 000",
        "253 000 000 habitantes",
        "2.345.678.901",
        "€ 239 123 456",
        "239 123 456 €",
        "239 123 456,50",
        "12-05-1958",
        "12-05-1958 20-06-1980",
        "2024-05-12 12:30:45",
        "20240512 123045",
        "1700000000",
        "239123456",
        "ISBN 978-972-1-23456-7",
        "978-972-20-1234-5",
        "9789722012345",
        "972-20-1234-5",
        "ISBN-10: 972 201 234 5",
        "ISBN 912345678",
        "PT50 0002 0123 1234 5678 9015 4",
        "ES91 2100 0418 4502 0005 1332",
        "GB29 NWBK 6016 1331 9268 19",
        "NIF 234 567 890",
        "contribuinte n.º 234 567 890",
        "4539 1488 0343 6467",
        "3-2, 4-1, 0-0 1-1 2-2 3-3",
        "10 9 8 7 6 5 4 3 2 1",
        "38.7223340",
        "28.1234567",
        "192.168.100.200",
        "301 2345678",
        "12345678901234567890",
        "3.1415926535897",
        "pp. 123-145 200-210",
        "800 200 300",
        "id=912345678",
        "x912345678",
        "/912345678",
        "912345678x",
        "+999 123 456 789",
        "0000000000",
    ],
)
def test_other_numbers_are_not_telephones(text):
    assert personal_data(text) == ()
    assert personal_data(f"Foi assim, {text}.") == ()


def test_each_kind_is_named_once():
    text = "a@b.pt, 239 123 456, c@d.pt, 239 123 457"
    assert personal_data(text) == ("e-mail address", "telephone number")


def test_nothing_takes_long_to_search():
    """Each would take minutes where the time grew with the square of the length."""
    for piece in ("1", "1 ", "a@", "a", "+(", "(", "12345678 ", "1  ", "b."):
        assert personal_data("a@" + piece * 100_000) == ()


# Language ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("pt", "O clube foi fundado em 1974 por um grupo de amigos que gostavam de futebol e de música."),
        ("pt", "Não sei se amanhã vai chover, mas levo o guarda-chuva na mesma para o trabalho."),
        ("en", "The club was founded in 1974 by a group of friends who loved football and music."),
        ("en", "I do not know whether it will rain tomorrow, but I shall take my umbrella anyway."),
        ("es", "El club fue fundado en 1974 por un grupo de amigos a los que les gustaba el fútbol."),
        ("es", "No sé si mañana va a llover, pero de todos modos me llevo el paraguas al trabajo."),
    ],
)
def test_languages_are_told_apart(code, text):
    assert language_of(text) == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "O clube foi fundado em 1974.",
        "1234567890 " * 10,
        "Maria Silva João Pereira António Costa Rui Santos Ana Ferreira Luís Gomes",
        "asdkjh qwe zxcmnb lkjqwe poiuqw mnbzxc asdlkj qweoiu zxcmnb asdkjh qweoi",
    ],
)
def test_where_it_is_unsure_it_says_nothing(text):
    assert language_of(text) == ""


def test_the_model_is_loaded_once_by_many_threads(monkeypatch):
    from py3langid.langid import LanguageIdentifier

    loaded, load = [], LanguageIdentifier.from_model_file
    monkeypatch.setattr(
        LanguageIdentifier, "from_model_file", lambda *names, **options: loaded.append(names) or load(*names, **options)
    )
    cleaning._identifier.cache_clear()
    found = []
    text = "O clube foi fundado em 1974 por um grupo de amigos que gostavam de futebol."
    threads = [threading.Thread(target=lambda: found.append(language_of(text))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["pt"] * 4
    assert len(loaded) == 1


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    cleaning._identifier.cache_clear()
    with pytest.raises(DataError, match=r"^--language needs the extra `formats`: uv sync --extra formats$"):
        language_of("O clube foi fundado em 1974 por um grupo de amigos que gostavam de futebol.")
