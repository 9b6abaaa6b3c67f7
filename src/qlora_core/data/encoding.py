"""Bytes to text: which encoding a file is in. Knows nothing of what the text says."""

from __future__ import annotations

import codecs
import re

import charset_normalizer

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MULTIBYTE = re.compile(rb"[\xc3-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
# What people's files are in when they are not in Unicode. The library knows many more, and finds them in short texts.
_LEGACY = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "mac_roman", "shift_jis", "gb18030", "euc_kr"]


def detect(sample: bytes) -> str:
    """Name of the encoding that a file beginning with `sample` is in.

    A byte order mark decides; then many zero bytes (UTF-16); then whether any character is valid UTF-8: a file with
    some is UTF-8, even where other bytes are damaged. Only a file without any is taken for a legacy encoding.
    """
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return name
    pairs = sample[:4096]
    odd, even = pairs[1::2].count(0), pairs[::2].count(0)
    if max(odd, even) > len(pairs) // 5 and min(odd, even) < max(odd, even) // 4:
        return "utf-16-le" if odd > even else "utf-16-be"
    if sample.isascii() or _MULTIBYTE.search(sample):
        return "utf-8"
    try:
        sample[:-4].decode("utf-8")  # the sample may end inside a character
        return "utf-8"
    except UnicodeDecodeError:
        best = charset_normalizer.from_bytes(sample[:65536], cp_isolation=_LEGACY).best()
        return best.encoding if best else "cp1252"


def decode(content: bytes) -> tuple[str, str]:
    """A whole file's text with line feeds only, and its encoding; a damaged byte becomes U+FFFD."""
    name = detect(content)
    text = content.decode(name, errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n"), name
