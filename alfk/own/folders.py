"""A user's folder of images: pool/, with images at any depth, and val/<class>/, with clean ones."""

import dataclasses
import filecmp
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from alfk.support.errors import UserError

SUFFIXES = (".jpeg", ".jpg", ".png")
NAMED = 5  # files named in a line, of more the number is given


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a folder, by name, with their sizes in bytes.

    Attributes:
        pool: of pool/; names are paths below it.
        clean: of val/; names are <class>/<path>.
        left_out: number of files of other types.
        copies: names in pool/ of images that are also in val/; they are not in `pool`.
    """

    pool: dict[str, int]
    clean: dict[str, int]
    left_out: int
    copies: list[str]

    @property
    def classes(self) -> list[str]:
        """The folders in val/ with images, sorted."""
        return sorted({class_of(name) for name in self.clean})


def class_of(name: str) -> str:
    """The class of a clean image."""
    return name.split("/", 1)[0]


def listing(root: Path) -> Listing:
    """The images in pool/ and val/ of a folder; hidden files are ignored, links are followed.

    Raises:
        UserError: a part is missing or empty, an image lies in val/ itself, or a name is not UTF-8.
    """
    (pool, others), (clean, more) = (_images(root, part) for part in ("pool", "val"))
    same = _copies(root, pool, clean)
    for name in clean:
        if "/" not in name:
            raise UserError(f"{root}/val/{name} is in no class: move it into val/<class>/")
    return Listing({name: size for name, size in pool.items() if name not in same}, clean, others + more, same)


def _copies(root: Path, pool: Mapping[str, int], clean: Mapping[str, int]) -> list[str]:
    """Images of pool/ whose file is also in val/: held-out images would be trained on."""
    sizes: dict[int, list[str]] = {}
    for name, size in clean.items():
        sizes.setdefault(size, []).append(name)

    def is_copy(name: str) -> bool:
        others = sizes.get(pool[name], ())
        return any(filecmp.cmp(root / "pool" / name, root / "val" / other, shallow=False) for other in others)

    return [name for name in pool if is_copy(name)]


def _images(root: Path, part: str) -> tuple[dict[str, int], int]:
    """Name and size of the images of a part, sorted, and the number of other files. Raises UserError."""
    found, others = {}, 0
    for path, file in _files(root / part):
        name = os.path.relpath(path, root / part)
        if not file.lower().endswith(SUFFIXES):
            others += 1
            continue
        try:
            name.encode()
            status = os.stat(path)
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode(errors="backslashreplace")
            raise UserError(
                f"{root / part}/{shown}: a name that is not UTF-8 cannot stand in a table: rename it"
            ) from None
        except OSError as problem:
            raise UserError(f"{path}: {problem.strerror}; make it readable, replace or remove it") from None
        if stat.S_ISREG(status.st_mode):
            found[name] = status.st_size
        else:
            others += 1
    if not found:
        form = "images" if part == "pool" else "<class>/ with images"
        raise UserError(
            f"{root / part} has no image ({', '.join(SUFFIXES)}): a folder holds pool/ with images to choose "
            f"from, and val/<class>/ with clean ones; put {form} into it"
        )
    return dict(sorted(found.items())), others


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """(path, name) of all files in a folder, at any depth."""

    def fail(problem: OSError) -> None:
        if os.path.exists(folder):
            raise UserError(f"{problem.filename}: {problem.strerror}; make it readable, or remove it") from None

    seen = set()  # a link may lead back
    for path, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from ((os.path.join(path, name), name) for name in files if name[0] != ".")


def changes(before: Mapping[str, int], now: Mapping[str, int], part: str) -> list[str]:
    """Lines about images that were added, removed, or replaced by others of another size; empty if there are none."""
    added, removed = [n for n in now if n not in before], [n for n in before if n not in now]
    replaced = [n for n in now if n in before and now[n] != before[n]]
    lines = [f"{len(added)} image{'s' * (len(added) > 1)} added to {part}/"] if added else []
    lines += [f"removed from {part}/: {named(removed)}; their labels are not used"] if removed else []
    return lines + ([f"changed in {part}/: {named(replaced)}"] if replaced else [])


def named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
