"""Writing figures as whole files."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from alfk.support.errors import UserError
from alfk.support.files import atomic

NO_DATE = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # the same figure is the same file


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure in the format of the path's suffix, PNG without one; its folder is made if it is missing.

    Args:
        dpi: pixels per inch.
    Raises:
        UserError: it cannot be written, or the format is unknown.
    """
    content = io.BytesIO()
    try:
        figure.savefig(content, format=path.suffix[1:] or "png", dpi=dpi, metadata=NO_DATE.get(path.suffix.lower()))
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as problem:
        raise UserError(f"cannot write {path}: {getattr(problem, 'strerror', None) or problem}") from None
    with atomic(path) as file:
        file.write(content.getbuffer())
