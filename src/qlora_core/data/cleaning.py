"""Repair of texts, and findings to check before training on them. Knows nothing of files."""

from __future__ import annotations

import functools
import re
import threading
import unicodedata
from collections.abc import Iterator
from typing import Any

from ..errors import DataError

ENCODING, FORM, CONTROLS, LOST = "encoding", "Unicode form", "control characters", "lost characters"
E_MAIL, TELEPHONE = "e-mail address", "telephone number"

# Repairs -------------------------------------------------------------------------------------------------------------

# What the bytes 80 to BF become in cp1252 and its neighbours; in UTF-8 they follow the first byte of a character.
_FOLLOWING = "\x80-\xbfŒœŠšŸŽžƒˆ˜–—‘’‚“”„†‡•…‰‹›€™ŚśŤťŹźŁłĄąĽľŞşŻżˇ˘˝˛Ђ-ЏЁђ-џёЎўІіҐґЄєЇї№΄΅Ά-ΏŖŗ"
# Cheap, so that only what might be wrong is given to ftfy. C1 characters are those of cp1252 read as Latin-1; U+0085
# alone may also be what it says, a line end.
_SUSPECT = re.compile(  # all begins with one class, which makes the search twice as fast
    f"[\x80-\x84\x86-\x9f\xc2-\xf4ĂĹĀĆāĐŃŠĪĻВГДЕРСвΒΓΔΕΞΟβ√≈ƒŒ├┬┼╨╤╬╧‚](?:[{_FOLLOWING}]"
    "|(?<=[\x80-\x9f])|(?<=[ÃÂ]) |(?<=[√≈ƒŒ├┬┼╨╤╬╧])[^\0-\x7f]|(?<=‚)Ä)"
)
# ftfy reads “MANHÃ” as MANHÔ and a footnote at JOSÉ² as JOSɲ: these alone are no sign of a wrong encoding.
_RIGHT = re.compile(f"(?<![a-zß-ÿ])Ã(?=[»”’›…–—]+(?!\\w))|(?<=[A-ZÀ-Þ])Ã(?=\xa0)|[ÀÉÊÍÓÔÚÜÇÑ](?=[{_FOLLOWING}])")
_WINDOWS = re.compile("[\x80-\x84\x86-\x9f]")
_WINDOWS_CHARACTERS = {code: bytes([code]).decode("cp1252", "ignore") or chr(code) for code in range(0x80, 0xA0)}
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u2028-\u202e\u2066-\u2069\ufeff]")
_INDENTED = re.compile(r"(?:[^\S\n]*\n)*( +|\t+)(?=\S)")  # of the first line that is not empty
_ALSO_INDENTED = re.compile(r"\n[ \t]+\S")
_LINE_ENDS = "\x0b\x0c\x85\u2028\u2029"


def clean(text: str, repair: bool = True) -> tuple[str, tuple[str, ...]]:
    r"""Repair a text.

    Args:
        text: the text as it was read.
        repair: False: only line ends become \n, and NUL and the white space around go. The indentation that the first
            line of code has is no white space around.

    Returns:
        The text, and the kinds of repair that were made; characters that were lost (U+FFFD) are only reported.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not repair:
        return _trimmed(text.replace("\0", "")), (CONTROLS,) if "\0" in text else ()
    repaired, kinds = _repaired(text)
    if repaired != text:  # one repair may reveal the need for another
        repaired, more = clean(repaired)
        kinds = (*kinds, *more)
    elif "\ufffd" in text:
        kinds = (LOST,)
    return repaired, tuple(dict.fromkeys(kinds)) if kinds else ()


def _repaired(text: str) -> tuple[str, tuple[str, ...]]:
    kinds: tuple[str, ...] = ()
    if not text.isascii():
        if _SUSPECT.search(text) and (mended := _mended(text)) != text:
            text, kinds = mended, (ENCODING,)
        if not unicodedata.is_normalized("NFC", text):
            text, kinds = unicodedata.normalize("NFC", text), (*kinds, FORM)
    if not text.isprintable() and _CONTROL.search(text):
        text, kinds = _CONTROL.sub(_without_control, text), (*kinds, CONTROLS)
    return _trimmed(text), kinds


def _trimmed(text: str) -> str:
    """Return the text without surrounding white space, keeping the first line's indentation where it has a meaning.

    It has one where it is as deep as code is indented, where other lines are indented too, or where it is the only line
    and begins no sentence.
    """
    trimmed = text.strip()
    if not trimmed or not text[0].isspace() or not (indented := _INDENTED.match(text)):
        return trimmed
    depth = len(indented[1].expandtabs(4))
    alike = _ALSO_INDENTED.search(trimmed) or not ("\n" in trimmed or trimmed[0].isupper())
    return indented[1] + trimmed if depth > 3 or (depth > 1 and alike) else trimmed


def _mended(text: str) -> str:
    import ftfy  # only here: it takes a quarter of a second, which commands that read no data need not wait for
    from ftfy.badness import is_bad

    if _WINDOWS.search(text):
        try:
            return text.encode("latin-1").decode("utf-8")
        except UnicodeDecodeError:  # ftfy would take the “á\x94 ” that ends “Olá” for one character
            text = text.translate(_WINDOWS_CHARACTERS)
        except UnicodeEncodeError:  # it was decoded with another encoding
            pass
    return ftfy.fix_encoding(text) if is_bad(_RIGHT.sub("-", text)) else text


def _without_control(found: re.Match[str]) -> str:
    return "\n" if found[0] in _LINE_ENDS else ""


# Personal data -------------------------------------------------------------------------------------------------------

_ADDRESS = re.compile(
    r"(?<![\w.+@-])[\w.+-]{1,64}@(?:[^\W_][\w-]{0,62}\.)+(?!(?:png|jpe?g|gif|svg|webp)\b)[^\W\d_]{2,24}(?![\w@])"
)
_MANY_DIGITS = re.compile(r"[0-9](?:[0-9]{8}|[0-9 \xa0.()-]{8,30}[0-9])")  # cheap: what it finds need not be a number
_DIGITS = re.compile(r"[+(0-9]\+?(?:[ \xa0.()-]{0,2}[0-9]){8,}")
# How numbers without a country's are grouped. Years, amounts and the numbers of books and accounts rarely are so; by
# its digits alone every second amount would be a telephone number somewhere.
_GROUPS = {
    "PT": ("3-3-3", "2-3-4", "2-3-2-2", "3-2-2-2", "2-7", "9", "3-3-3-3"),
    "ES": ("3-3-3", "3-2-2-2", "2-3-2-2"),
    "BR": ("2-4-4", "2-5-4"),
    "US": ("3-3-4",),
    "FR": ("2-2-2-2-2",),
    "GB": ("3-4-4", "4-3-4", "5-6", "5-3-3"),
    "DE": ("3-7", "3-8", "4-7", "5-6"),
}
_BEGIN_WITH_0 = ("FR", "GB", "DE")
_NUMBER_SIGN = r"\W*(?:\bn\.?\s?[ºo°]\W*)?$"
_CALLED = re.compile(
    rf"\b(?:tel(?:e(?:f|m|ph)\w*|f|m)?|tlm|tlf|phone|fone|mobile|cell|celular|m[óo]vil|whatsapp|fax){_NUMBER_SIGN}",
    re.I,
)
_NOT_CALLED = re.compile(
    rf"[\w/=#@]$|[€$£]\s?$|\d,$|\b(?:ISBN|ISSN|IBAN|NIF|NIPC|NIB|NISS|CPF|CNPJ|DOI|contribuinte)(?:-1[03])?{_NUMBER_SIGN}",
    re.I,
)
_YEAR = re.compile(r"(?:1[5-9]|20)\d\d")


def personal_data(text: str) -> tuple[str, ...]:
    """Return the kinds of personal data a text seems to hold; rather miss an odd telephone number than flag prose."""
    address, telephone = next(_addresses(text), None), next(_telephones(text), None)
    return ((E_MAIL,) if address else ()) + ((TELEPHONE,) if telephone else ())


def personal_values(text: str) -> list[tuple[int, int]]:
    """Return where in a text its e-mail addresses and telephone numbers seem to be, from and to, in order."""
    return sorted([*_addresses(text), *_telephones(text)])


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        yield from (found.span() for found in _ADDRESS.finditer(text))


def _telephones(text: str) -> Iterator[tuple[int, int]]:
    if _MANY_DIGITS.search(text):
        yield from (found.span() for found in _DIGITS.finditer(text) if _is_telephone(text, *found.span()))


def _is_telephone(text: str, start: int, end: int) -> bool:
    number, before = text[start:end], text[max(start - 30, 0) : start]
    if _NOT_CALLED.search(before) or re.match(r"\w|\s?[%€$£]|,\d", text[end : end + 2]):
        return False
    groups = re.findall("[0-9]+", number)
    if number.lstrip("(").startswith(("+", "00")):
        return _is_valid(number, "PT")  # where 00 comes before another country's number
    if sum(map(bool, map(_YEAR.fullmatch, groups))) > 1 or groups[-1] == "000" or (len(groups) == 2 and "." in number):
        return False
    shape, called = "-".join(str(len(group)) for group in groups), _CALLED.search(before)
    return any(
        _is_valid(number, region)
        for region, shapes in _GROUPS.items()
        if (called or (shape in shapes and (shape != "9" or groups[0][0] == "9")))
        and (groups[0][0] == "0") == (region in _BEGIN_WITH_0)
    )


@functools.lru_cache(maxsize=4096)
def _is_valid(number: str, region: str) -> bool:
    """Return whether a telephone number can be a person's, and belongs to no free or paid service."""
    import phonenumbers
    from phonenumbers import PhoneNumberType as Type

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False
    somebody = (Type.FIXED_LINE, Type.MOBILE, Type.FIXED_LINE_OR_MOBILE, Type.VOIP, Type.PERSONAL_NUMBER)
    return phonenumbers.is_valid_number(parsed) and phonenumbers.number_type(parsed) in somebody


# Language ------------------------------------------------------------------------------------------------------------

_LETTERS_NEEDED, _LOOKED_AT, _SURE = 40, 1000, 0.9
_loading = threading.Lock()


def language_of(text: str) -> str:
    """Return the ISO 639-1 code of a text's language, its ISO 639-3 code if it has no other, or "" when unsure.

    Raises:
        DataError: the extra that holds the library is not installed.
    """
    text = text[:_LOOKED_AT]
    if sum(map(str.isalpha, text)) < _LETTERS_NEEDED:
        return ""
    with _loading:
        identifier = _identifier()
    code, probability = identifier.classify(text)
    return code if probability >= _SURE and code != "zxx" else ""  # zxx: no language


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise DataError("--language needs the extra `formats`: uv sync --extra formats") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
