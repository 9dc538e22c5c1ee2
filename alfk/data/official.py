"""The official files of a data set: downloads, and what happens to files that are not official."""

import contextlib
import http.client
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from alfk.support import distributed
from alfk.support.errors import UserError


def download(path: Path, urls: Sequence[str], md5: str) -> bool:
    """Download a file from the first URL that serves it with the right MD5. Returns whether one did.

    The download has a temporary name until it is complete.
    """
    from torchvision.datasets.utils import download_url  # slow to import, and seldom needed

    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    for url in urls:
        with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):  # RuntimeError: a wrong MD5
            try:
                download_url(url, str(path.parent), temporary.name, md5)
                temporary.replace(path)
                return True
            finally:
                temporary.unlink(missing_ok=True)
    return False


def warn_or_refuse(problem: str, strict: bool, fix: str) -> None:
    """Refuse files that are not the official ones, or warn of them on stderr, once for all processes.

    Args:
        fix: what the user can do if they are refused.
    Raises:
        UserError: `strict` is true.
    """
    if strict:
        raise UserError(f"{problem}; {fix}")
    if multiprocessing.parent_process() is None and distributed.is_main_process():
        print(f"warning: {problem}", file=sys.stderr)
