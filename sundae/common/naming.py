"""Names from files: their order, variants of one image, safe in paths and on a terminal."""

import re
from pathlib import PurePath, PurePosixPath

NaturalKey = tuple[tuple[tuple[str | int, ...], ...], str]

_DIGITS = re.compile(r"([0-9]+)")
_MIRROR_MARK = re.compile(r"[_-](flip|hflip|mirror|aug)$")
_ORIGINAL_MARK = re.compile(r"[_-]orig$")

# What a terminal acts on instead of showing it: control characters (C0, DEL, C1), line breaks, and
# overrides of the direction of text, which make a line read as another one. Lone surrogates stand
# for bytes that are no UTF-8, and cannot be printed.
_UNPRINTABLE = "\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[{_UNPRINTABLE}]")
# The separators of all systems, and what Windows takes in no name.
_NOT_IN_A_COMPONENT = re.compile(f'[{_UNPRINTABLE}/\\\\:*?"<>|]')
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|$)", re.IGNORECASE)
_LONGEST = 100  # bytes; file systems take 143 or more, and suffixes and marks are added


def natural_key(name: str | PurePath) -> NaturalKey:
    """Sort key that orders numbers by value and folders before what they are a prefix of.

    "2" comes before "10", and "a/9.png" before "a-b/1.png". Names that differ only in leading zeros
    keep a fixed order.
    """
    text = name.as_posix() if isinstance(name, PurePath) else name
    # re.split alternates text and digits, so the same position always compares the same type.
    parts = (_DIGITS.split(part) for part in text.split("/"))
    key = tuple(tuple(int(p) if i % 2 else p for i, p in enumerate(part)) for part in parts)
    return key, text


def image_name(path: str) -> str:
    """The path without suffix and without a mark: the same for an image and its mirror image.

    "a/cat.png", "a/cat_orig.npy" and "a/cat_flip.npy" are all "a/cat".
    """
    stem = PurePosixPath(path).stem
    unmarked = _ORIGINAL_MARK.sub("", _MIRROR_MARK.sub("", stem)) or stem
    return PurePosixPath(path).with_name(unmarked).as_posix()


def family_name(path: str) -> str:
    """What an image shares with its variants: its name up to an "@".

    "a/hand.png", "a/hand@dark.png" and "a/hand@dark_flip.png" are all of the family "a/hand".
    """
    name = PurePosixPath(image_name(path))
    return name.with_name(name.name.split("@")[0] or name.name).as_posix()


def path_component(name: str) -> str:
    """Any text as one component of a path, valid on all systems and not hidden.

    Names that are so already stay as they are; two names may become the same.

    Returns:
        1 to 100 bytes of UTF-8 without separators, control characters and lone surrogates; no dot
        at the start, no dot or space at the end, no name of a device on Windows.
    """
    component = _shortened(_NOT_IN_A_COMPONENT.sub("_", name).lstrip("."))
    if _DEVICE.match(component):
        component = _shortened(f"_{component}")
    return component or "unnamed"


def _shortened(name: str) -> str:
    return name.encode()[:_LONGEST].decode(errors="ignore").rstrip(". ")


def printable(text: str) -> str:
    """Text as a terminal may show it, in one line: what would control the terminal is escaped.

    Control characters with line breaks and tabs, direction overrides and lone surrogates become
    \\x1b, \\n, \\u202e, \\udce9 and so on; everything else stays as it is.
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
