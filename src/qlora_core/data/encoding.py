"""Detection of a file's text encoding.

charset-normalizer, the usual library, mistakes Portuguese and French in cp1252 for cp1250 (15 of the 58 samples of the
tests are wrong with it, none with this). Knows nothing of what the text says.
"""

from __future__ import annotations

import codecs
import re

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WINDOW = 4096  # bytes examined, from the first that is not ASCII
_SOUND = 0.9  # share of valid UTF-8 among non-ASCII bytes of a damaged file; chance gives less
_HIGH = re.compile(rb"[\x80-\xff]")
_UTF8 = re.compile(rb"(?:[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})+")
_CUT = re.compile(rb"[\xc2-\xf4][\x80-\xbf]{0,2}\Z")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_PUNCTUATION = re.compile(  # where writers put it: in another encoding the same bytes are letters
    r"(?<!\w)[“‘«„](?=\S)|(?<=\S)[”’»…](?!\w)|(?<=\w)’(?=\w)|—|(?<!\S)[–•](?!\S)|(?<=\d)–(?=\d)"
    r"|(?<=[\s\d.])[ºª°](?![a-z])|[€©](?![A-Za-z])|[§£](?=\s?\d)|(?<![^\W\d_])[±×÷¼½¾](?![^\W\d_])|\xa0"
)
# Letters beyond ASCII of one language each: those of all Europe together would make sense of any byte. Only what is
# common to the west is also taken together, for a file in several languages; õ and û are left out, as the Hungarian
# ő and ű have their bytes.
_WESTERN = (
    "áàâãçéêíóôõúü áéíñóúü¿¡ àâçéèêëîïôœùûüÿ äöüß åäö æøåé àèéìòù áéëïöüíóú àçèéíïòóúü· áðéíóúýþæö áàâãäçéèêíñóôöúüß"
)
_JAPANESE = "ぁ-ヿ一-鿿、-」！-～"
_RUSSIAN = "абвгдежзийклмнопрстуфхцчшщъыьэюяё"
_LANGUAGES = {  # on a tie the first encoding wins
    "cp1252": _WESTERN,
    "cp1250": "ąćęłńóśźż áčďéěíňóřšťúůýž áäčďéíĺľňóôŕšťúýž áéíóöőúüű ăâîşţ čćđšž",
    "cp1255": "א-ת",  # the small letters of cp1251 have these bytes; to its capitals nothing corresponds
    "cp1251": f"{_RUSSIAN} абвгдежзийклмнопрстуфхцчшщьюяєіїґ",
    "koi8_r": _RUSSIAN,
    "cp866": _RUSSIAN,
    "cp1256": "ء-ي،؟",
    "cp1253": "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώϊ",
    "cp1254": "çğıöşüâîİ",
    "cp932": _JAPANESE,
    "cp949": "가-힣",
    "gb18030": "一-鿿、-」《》！-～",
    "euc_jp": _JAPANESE,
    "big5": "一-鿿、-」！-～",
    "mac_roman": _WESTERN,
    "cp850": _WESTERN,
}


def _in_place(letters: str) -> re.Pattern[str]:
    """Return a pattern of letters in their places: no capital after a small letter, no other script in a Latin word."""
    capitals = "".join(letter for letter in letters.upper() if not letter.isascii())  # not the SS of ß
    if letters[0] < "\u0250":
        return re.compile(f"[{letters}]|(?<![a-z{letters}])[{capitals}]")
    return re.compile(f"(?<![A-Za-z])(?:[{letters}]|(?<![{letters}])[{capitals}])(?![A-Za-z])")


_LETTERS = {name: [_in_place(letters) for letters in languages.split()] for name, languages in _LANGUAGES.items()}


def detect(sample: bytes) -> str:
    """Return the name of the encoding of a file that begins with `sample`.

    A byte order mark decides; then many zero bytes (UTF-16); then whether the non-ASCII bytes are UTF-8, perhaps
    damaged. Otherwise it is the legacy encoding in which most characters are letters of one language in plausible
    places. The sample may end inside a character.
    """
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return name
    pairs = sample[:_WINDOW]
    odd, even = pairs[1::2].count(0), pairs[::2].count(0)
    if max(odd, even) > len(pairs) // 5 and min(odd, even) < max(odd, even) // 4:
        return "utf-16-le" if odd > even else "utf-16-be"
    high = _HIGH.search(sample)
    return _beyond_ascii(sample[max(high.start() - 1, 0) : high.start() + _WINDOW]) if high else "utf-8"


def decode(content: bytes) -> tuple[str, str]:
    """Decode a file's text with line feeds only, and name its encoding; a damaged byte becomes U+FFFD."""
    name = detect(content)
    text = content.decode(name, errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n"), name


def _beyond_ascii(sample: bytes) -> str:
    valid, high = sum(map(len, _UTF8.findall(sample))), len(_HIGH.findall(sample))
    share = valid / high
    cut = _CUT.search(sample)
    if share > _SOUND or (cut and valid and valid + len(cut[0]) == high):
        return "utf-8"
    best, name = max(((_sense(sample, name), name) for name in _LANGUAGES), key=lambda found: found[0])
    if share >= best:
        return "utf-8"
    return name if best >= 0.5 else "cp1252"


def _sense(sample: bytes, name: str) -> float:
    """Return the share of non-ASCII characters that this encoding makes letters or punctuation in plausible places."""
    text = codecs.getincrementaldecoder(name)("replace").decode(sample)
    letters = max(len(pattern.findall(text)) for pattern in _LETTERS[name])
    return (letters + len(_PUNCTUATION.findall(text))) / (len(_BEYOND_ASCII.findall(text)) or 1)
