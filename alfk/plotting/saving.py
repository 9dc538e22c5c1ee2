"""Writing figures as whole files."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from alfk.plotting.fonts import choose_fonts, missing_letters_ignored
from alfk.support.errors import UserError
from alfk.support.files import atomic

NO_DATE = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # the same figure is the same file


def save(figure: Figure | Sequence[Figure], path: Path, dpi: int) -> None:
    """Write a figure in the format of the path's suffix, PNG without one; its folder is made if it is missing.

    Args:
        figure: several are the pages of a PDF file.
        dpi: pixels per inch.
    Raises:
        UserError: it cannot be written, or the format is unknown.
    """
    content, suffix = io.BytesIO(), path.suffix.lower()
    try:
        with missing_letters_ignored():
            if isinstance(figure, Figure):
                choose_fonts(figure)
                figure.savefig(content, format=suffix[1:] or "png", dpi=dpi, metadata=NO_DATE.get(suffix))
            else:
                with PdfPages(content, metadata=NO_DATE[".pdf"]) as pages:
                    for page in figure:
                        choose_fonts(page)
                        pages.savefig(page, dpi=dpi)
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as problem:
        raise UserError(f"cannot write {path}: {getattr(problem, 'strerror', None) or problem}") from None
    with atomic(path) as file:
        file.write(content.getbuffer())
