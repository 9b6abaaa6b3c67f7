"""Which encoding bytes are in; never an exception, whatever they are."""

import codecs
import random

import pytest

from qlora_core.data.encoding import decode, detect

PORTUGUESE = "O clube foi fundado em 1974. A associação não tem sede própria, mas já fez três edições da «festa»: é lá…"
FRENCH = "Le garçon était très fatigué après l’école. Où êtes-vous allés cet été ? À la forêt, bien sûr."
SPANISH = "El niño comió piñas mañana. ¿Cómo estás? ¡Qué año más difícil!"
GERMAN = "Die Straße ist schön. Äpfel und Öl gehören in die Küche, größer als früher."
POLISH = "Wczoraj byłem w Łodzi i piłem świeżą wodę. Dziękuję, że przyszedłeś na spotkanie."
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy. Včera jsem byl v Praze a viděl řeku."
HUNGARIAN = "Árvíztűrő tükörfúrógép. A kislány szép új könyvet olvasott, és örült."
ROMANIAN = "Ieri am fost la cinema şi am văzut un film nou. A fost foarte interesant, mulţumesc."
RUSSIAN = "Вчера мы ходили в кино и смотрели новый фильм. Было очень интересно."
GREEK = "Χθες πήγαμε στον κινηματογράφο και είδαμε μια νέα ταινία. Ήταν πολύ ενδιαφέρουσα."
TURKISH = "Dün sinemaya gittik ve yeni bir film izledik. Çok güzeldi, ışığı gördük, şeker yedik."
JAPANESE = "昨日、私たちは映画館に行って新しい映画を見ました。とても面白かったです。"
CHINESE = "昨天我们去电影院看了一部新电影。非常有趣。俱乐部成立于一九七四年。"
TRADITIONAL = "昨天我們去電影院看了一部新電影。非常有趣。俱樂部成立於一九七四年。"
KOREAN = "어제 우리는 영화관에 가서 새 영화를 보았습니다. 매우 재미있었습니다."
HEBREW = "הלכנו אתמול לקולנוע וראינו סרט חדש. זה היה מעניין מאוד."
ARABIC = "ذهبنا أمس إلى السينما وشاهدنا فيلما جديدا. كان ممتعا جدا."


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (PORTUGUESE, "cp1252"),
        (FRENCH, "cp1252"),
        (SPANISH, "cp1252"),
        (GERMAN, "cp1252"),
        (f"{GERMAN} {SPANISH}", "cp1252"),
        ("Voilà l’été, très tôt. Äpfel, Bär, spät, hätte.", "cp1252"),
        ("5 ± 2 × 3 ÷ 4, ¼ ½", "cp1252"),
        (POLISH, "cp1250"),
        (CZECH, "cp1250"),
        (HUNGARIAN, "cp1250"),
        (ROMANIAN, "cp1250"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN.upper(), "cp1251"),
        (f"Музей «СССР», {RUSSIAN}", "cp1251"),
        (RUSSIAN, "koi8_r"),
        (RUSSIAN, "cp866"),
        (GREEK, "cp1253"),
        (TURKISH, "cp1254"),
        (HEBREW, "cp1255"),
        (ARABIC, "cp1256"),
        (PORTUGUESE, "mac_roman"),
        (FRENCH, "mac_roman"),
        (PORTUGUESE.replace("…", "."), "cp850"),
        ("O José é médico e a Zélia é professora.", "cp850"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (CHINESE, "gb18030"),
        (TRADITIONAL, "big5"),
        (KOREAN, "euc_kr"),
    ],
)
def test_a_few_sentences_are_enough(text, encoding):
    assert decode(text.encode(encoding))[0] == text
    lines = "Title\n\n" + f"{text}\nA line in plain English.\n" * 50
    assert decode(lines.encode(encoding))[0] == lines


@pytest.mark.parametrize(
    "text",
    [
        "Ação do clube à noite, não é",
        "«Não», disse",
        "ATENÇÃO», disse",
        "\u201cAMANH\xc3\u201d \xe9 a m\xe3e d\u2019\xe1gua",
        "José…",
        "café",
        "É",
        "naïve",
        "It’s “fine”",
        "He came—and went.",
        "1974–75 and £5, 50 €",
        "• one\n• two",
        "© 2024",
        "o 1.º e a 2.ª, 30 °C",
    ],
)
def test_a_line_of_a_western_language_is_enough(text):
    assert detect(text.encode("cp1252")) == "cp1252"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_decides(encoding):
    assert decode(PORTUGUESE.encode(encoding)) == (PORTUGUESE, encoding)


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE])
def test_a_mark_decides_the_order_of_bytes_too(mark):
    name = "utf-16" if len(mark) == 2 else "utf-32"
    assert decode(mark + PORTUGUESE.encode(f"{name}-be")) == (PORTUGUESE, name)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [PORTUGUESE, POLISH, "Plain English."])
def test_utf_16_without_a_mark(text, encoding):
    assert decode(text.encode(encoding)) == (text, encoding)


@pytest.mark.parametrize("text", ["", "plain\n", PORTUGUESE, POLISH, RUSSIAN, CHINESE, JAPANESE, KOREAN, "😀"])
def test_utf_8_is_found(text):
    assert decode(text.encode()) == (text, "utf-8")


@pytest.mark.parametrize("text", [PORTUGUESE, RUSSIAN, CHINESE, KOREAN, "Zé é 😀", "x" * 9000 + "Zé, Zé é"])
def test_utf_8_cut_inside_a_character_is_found(text):
    for cut in range(1, 6):
        assert detect(text.encode()[:-cut]) == "utf-8", cut


@pytest.mark.parametrize("text", [PORTUGUESE, RUSSIAN, CHINESE, "Zé"])
def test_damaged_utf_8_is_not_taken_for_something_else(text):
    content = text.encode()
    damaged = content[:40] + b"\xff" + content[40:]
    assert decode(damaged) == (damaged.decode("utf-8", "replace"), "utf-8")
    assert "\ufffd" in decode(damaged)[0]


def test_damaged_utf_8_that_is_valid_gb18030_is_found():
    content = RUSSIAN.encode()
    for place in range(len(content)):
        assert detect(content[:place] + b"A" + content[place + 1 :]) == "utf-8", place


def test_line_ends_become_line_feeds():
    assert decode(b"a\r\nb\rc\n") == ("a\nb\nc\n", "utf-8")
    assert decode("a\r\nb".encode("utf-16-le"))[0] == "a\nb"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\xc3",
        b"\xff",
        "é\n".encode("utf-16") + b"\x00",
        "plain".encode("utf-16-le")[:-1],
        codecs.BOM_UTF16_LE + b"\x00\xd8",
        codecs.BOM_UTF32_LE + b"\xff\xff\xff\xff\x01",
        codecs.BOM_UTF32_BE + b"garbage",
        codecs.BOM_UTF8 + b"\xff",
    ],
)
def test_damaged_bytes_are_text_too(content):
    text, name = decode(content)
    assert name == detect(content)
    assert isinstance(text, str)


def test_where_nothing_makes_sense_it_is_the_commonest():
    assert detect(b"\xb4 \xb9 \xb6 \xb7 \xaf") == "cp1252"


def test_random_bytes_are_text_too():
    drawn = random.Random(3)
    for size in [*range(1, 60), 5000]:
        for low in (0, 128):
            content = bytes(drawn.randrange(low, 256) for _ in range(size))
            text, name = decode(content)
            assert codecs.lookup(name)
            assert isinstance(text, str)


@pytest.mark.parametrize("encoding", ["shift_jis", "gb18030", "euc_kr", "big5"])
def test_a_sample_may_end_inside_a_character(encoding):
    text = {"shift_jis": JAPANESE, "gb18030": CHINESE, "euc_kr": KOREAN, "big5": TRADITIONAL}[encoding]
    content = text.encode(encoding)
    whole = detect(content)
    assert [detect(content[:-cut]) for cut in range(1, 6)] == [whole] * 5
