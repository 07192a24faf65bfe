"""What file names say: their natural order, and which pictures are variants of one another."""

import re
from pathlib import PurePath, PurePosixPath

NaturalKey = tuple[tuple[tuple[str | int, ...], ...], str]

_DIGITS = re.compile(r"([0-9]+)")
_MIRROR_MARK = re.compile(r"[_-](flip|hflip|mirror|aug)$")
_ORIGINAL_MARK = re.compile(r"[_-]orig$")


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


def is_mirror(path: str) -> bool:
    """Whether a file name carries a mark of a mirror image: "cat_flip.npy", "cat-aug.npy"."""
    return bool(_MIRROR_MARK.search(PurePosixPath(path).stem))


def picture_name(path: str) -> str:
    """The path without suffix and without a mark: the same for a picture and its mirror image.

    "a/cat.png", "a/cat_orig.npy" and "a/cat_flip.npy" are all "a/cat".
    """
    stem = PurePosixPath(path).stem
    unmarked = _ORIGINAL_MARK.sub("", _MIRROR_MARK.sub("", stem)) or stem
    return PurePosixPath(path).with_name(unmarked).as_posix()


def family_name(path: str) -> str:
    """What a picture shares with its variants: its name up to an "@".

    "a/hand.png", "a/hand@dark.png" and "a/hand@dark_flip.png" are all of the family "a/hand".
    """
    name = PurePosixPath(picture_name(path))
    return name.with_name(name.name.split("@")[0] or name.name).as_posix()
