"""Names from the traced processes, made safe for one line of a terminal or of a folded file.

A process chooses its comm, its paths and its symbols: they may hold newlines, terminal escapes and marks that turn
the direction of the text.  Nothing is dropped; what does not print is spelled out.
"""

from __future__ import annotations

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str) -> str:
    r"""``text`` with all that does not print (C0, C1, bidi and other format characters, line separators, unassigned and
    private ones, blanks other than the space, stray bytes) as ``\n``, ``\x1b``, ``\u202e``; stray bytes as ``\xff``.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _spelled(each) for each in text)


def _spelled(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that was no UTF-8
        code -= 0xDC00
    if char in _SHORT:
        return _SHORT[char]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def encodable(text: str) -> str:
    """``text`` with stray bytes and lone surrogates spelled out: for JSON, which quotes all else by itself."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_spelled(each) if 0xD800 <= ord(each) <= 0xDFFF else each for each in text)
    return text
