"""Widths of texts, and fonts that have their letters."""

import contextlib
import functools
import re
import textwrap
import warnings
from collections.abc import Iterator

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

LAST_RESORT = "Last Resort"  # matplotlib's fonts that have frames in place of letters


class _Wrapper(textwrap.TextWrapper):
    wordsep_re = re.compile(r"(\s+|[^\s_/-]*[_/-]+)")  # lines may end after spaces, underscores, slashes and hyphens


@functools.lru_cache(4096)
def wrapped(text: str, width: float, size: float, weight: str = "normal") -> tuple[str, ...]:
    """The lines of a text, broken so that none is wider; words that do not fit are broken too.

    Bytes in names of files that are not UTF-8 become question marks.

    Args:
        width: in inches.
        size: of the font, in points.
    """
    font = FontProperties(family=families(text), size=size, weight=weight)

    def fits(line: str) -> bool:  # letters drawn in pixels are up to 5 % wider
        return text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] <= 0.95 * 72 * width

    lines: list[str] = []
    with missing_letters_ignored():
        for paragraph in text.encode("utf-8", "replace").decode().splitlines():
            broken, most = [paragraph], len(paragraph)
            while most > 1 and not all(map(fits, broken)):
                most = min(most, max(map(len, broken))) - 1
                broken = _Wrapper(most).wrap(paragraph)
            lines += broken
    return tuple(lines)


def families(text: str) -> list[str]:
    """Matplotlib's font families, and installed ones that have the letters that these lack."""
    others = {_other_family(letter) for letter in text if not letter.isascii()}
    return [*matplotlib.rcParams["font.family"], *sorted(others - {None})]


@functools.cache
def _other_family(letter: str) -> str | None:
    """An installed font family that has a letter; None if matplotlib's own has it, or none."""
    if _has(findfont(FontProperties()), letter):
        return None
    fonts = (font for font in fontManager.ttflist if not font.name.startswith(LAST_RESORT))
    return next((font.name for font in fonts if _has(font.fname, letter)), None)


def _has(path: str, letter: str) -> bool:
    """Whether a font's file has a letter; one that cannot be read has none."""
    try:
        return get_font(path).get_char_index(ord(letter)) > 0
    except (OSError, RuntimeError):
        return False


def choose_fonts(figure: Figure) -> None:
    """Give each text with letters that matplotlib's font lacks a font that has them, if one is installed."""
    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            text.set_fontfamily(families(text.get_text()))


@contextlib.contextmanager
def missing_letters_ignored() -> Iterator[None]:
    """Inside the block letters that no installed font has are frames, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        yield
