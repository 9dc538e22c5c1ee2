"""Items of a torch.utils.data.Dataset as the storage of a `Split`: read one by one, never all at once."""

import contextlib
import copy
import multiprocessing
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from alfk.data.arrays import as_images, class_names
from alfk.support.errors import UserError

READ_AT_ONCE = 100  # items of a chunk when labels are read


class DatasetItems:
    """The images of a data set, (N, C, H, W) or features (N, D), as its transform gives them: the storage of a `Split`.

    Items are images or tuples (image, label, ...); an image is a tensor, an array or a PIL image. Random transforms
    that draw from torch's generator are seeded for each item, so that a pass over the images can be repeated; those
    that draw from Python's or numpy's are not.

    Args:
        dataset: map-style, with a length.
        workers: processes that read items, started again for each pass over the items; 0 reads them in this process.
    Attributes:
        shape, dtype: of all images, from the first; uint8 or float32.
    Raises:
        UserError: no items, items that are not images, or a process that dies.
    """

    def __init__(self, dataset: Dataset, workers: int = 0, device: torch.device | str = "cpu"):
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise UserError("this data set has no length and no positions: give a map-style torch.utils.data.Dataset")
        if len(dataset) == 0:
            raise UserError("the data set has no items: give at least one")
        self.dataset, self.workers, self.device = dataset, workers, torch.device(device)
        first = next(self._read([[0]], None))
        self.shape, self.dtype, self.ndim = torch.Size((len(dataset), *first.shape[1:])), first.dtype, first.ndim

    def __len__(self) -> int:
        return len(self.dataset)

    def to(self, device: torch.device | str) -> "DatasetItems":
        """The same items, copied to `device`."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def fetch(self, chunks: Sequence[Tensor], seed: int | None = None) -> Iterator[Tensor]:
        """(B, C, H, W) or (B, D), uint8 or float32, for each chunk of rows (B,), which are on the CPU.

        Args:
            seed: of random transforms; those of a row depend on the seed alone, not on the batch or the workers.
        Raises:
            UserError: an image differs from the first one in shape or type.
        """

        def about(images: Tensor | DatasetItems) -> str:
            return f"{tuple(images.shape[1:])} {images.dtype}".replace("torch.", "")

        chunks = [rows.tolist() for rows in chunks]
        for rows, images in zip(chunks, self._read(chunks, seed), strict=True):
            if rows and (images.shape[1:], images.dtype) != (self.shape[1:], self.dtype):
                raise UserError(
                    f"images differ: image 0 is {about(self)}, image {rows[0]} is {about(images)}: "
                    "resize and convert them in its transform"
                )
            yield (images if rows else torch.empty((0, *self.shape[1:]), dtype=self.dtype)).to(self.device)

    def labels(self) -> object:
        """The labels of all items, from the data set's attributes if they are there, else read; None without labels."""
        found = _stored_labels(self.dataset)
        if found is not None:
            return found
        if next(self._read([[0]], None, "label"))[0] is None:
            return None
        chunks = [part.tolist() for part in torch.arange(len(self)).split(READ_AT_ONCE)]
        return [label for part in self._read(chunks, None, "label") for label in part]

    def _read(self, chunks: list[list[int]], seed: int | None, part: str = "image") -> Iterator[Tensor | list[object]]:
        draws = torch.randint(2**62, (len(self.dataset),), generator=torch.Generator().manual_seed(seed or 0))
        in_daemon = multiprocessing.current_process().daemon  # which cannot start processes
        loader = DataLoader(
            _Chunks(self.dataset, chunks, draws, part),
            batch_size=None,
            num_workers=0 if in_daemon or len(chunks) == 1 else min(self.workers, len(chunks)),
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # without it the DataLoader would advance the global generator
        )
        with worker_deaths():
            for found in loader:
                if isinstance(found, str):  # an error message: a worker's exception would carry its traceback as text
                    raise UserError(found)
                yield torch.from_numpy(found) if isinstance(found, np.ndarray) else found


class HuggingFaceItems(Dataset):
    """The images of a data set of the `datasets` package, which is not needed for it.

    Args:
        dataset: has `features`, one of them of type Image; if its transform gives `pixel_values`, these are the images.
    Attributes:
        targets: labels of all items: its column `label`, or else its only one of class labels; None without one.
        classes: names of the classes; None if there are none.
    Raises:
        UserError: it is streamed, or it is not clear which column has the images or the labels.
    """

    def __init__(self, dataset: Any):
        if not hasattr(dataset, "__len__"):
            raise UserError("this data set is streamed, without positions: load it without streaming=True")
        self.dataset = dataset
        kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
        images = [name for name, kind in kinds.items() if kind == "Image"]
        labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
        labels = ["label"] if "label" in kinds else labels
        if not images:
            raise UserError(
                f"no column of the data set is of type Image, among {', '.join(kinds)}: give features as an array, "
                "Split.of(np.array(dataset[column]), labels)"
            )
        for columns in (images, labels):
            if len(columns) > 1:
                raise UserError(
                    f"the data set has the columns {', '.join(columns)}: leave out all but one, "
                    f"dataset.remove_columns({columns[1:]})"
                )
        self.image, self.targets, self.classes = images[0], None, None
        if labels:
            self.targets = _unformatted(dataset)[labels[0]][:]
            self.classes = getattr(dataset.features[labels[0]], "names", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> object:
        item = self.dataset[i]
        return item["pixel_values"] if "pixel_values" in item else item[self.image]


def is_hugging_face(given: object) -> bool:
    """Whether it is a data set of the `datasets` package, or like one."""
    return isinstance(getattr(given, "features", None), Mapping) and hasattr(given, "column_names")


def _unformatted(dataset: Any) -> Any:
    """The data set without its transform, which may need all columns."""
    return dataset.with_format(None) if hasattr(dataset, "with_format") else dataset


def own_classes(dataset: Dataset) -> tuple[str, ...] | None:
    """The names of classes by which a data set numbers its labels, as torchvision's do; None if they are not known.

    Synonyms in a tuple are joined. A name of several classes, as two cranes have it, is followed by their numbers.
    """
    if isinstance(dataset, Subset):
        return own_classes(dataset.dataset)
    found = getattr(dataset, "classes", None)
    if getattr(dataset, "target_transform", None) is not None or not isinstance(found, list | tuple | np.ndarray):
        return None
    names = [", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name) for name in found]
    return class_names([f"{name} {c}" if names.count(name) > 1 else name for c, name in enumerate(names)])


class _Chunks(Dataset):
    """Item i: images (B, ...), an array, or labels, a list, of the items in chunk i, or an error message."""

    def __init__(self, dataset: Dataset, chunks: list[list[int]], draws: Tensor, part: str):
        self.dataset, self.chunks, self.draws, self.part = dataset, chunks, draws, part

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, i: int) -> np.ndarray | list[object] | str:
        state = torch.get_rng_state()
        try:
            items = [self._item(row) for row in self.chunks[i]]
            if not items or self.part == "label":
                return items
            # As an array it comes through a pipe: a worker that finds no room for a tensor in /dev/shm would never end.
            return as_images(items, self.chunks[i]).numpy()
        except UserError as problem:
            return str(problem)
        finally:
            torch.set_rng_state(state)

    def _item(self, row: int) -> object:
        torch.default_generator.manual_seed(int(self.draws[row]))  # torch.manual_seed would seed GPUs too
        item = self.dataset[row]
        if isinstance(item, dict):
            raise UserError("items are dictionaries: wrap the data set in one whose items are (image, label)")
        parts = (*item, None) if isinstance(item, tuple | list) else (item, None)
        return parts[self.part == "label"]


@contextlib.contextmanager
def worker_deaths() -> Iterator[None]:
    """Raises UserError if a process that reads items ends before its work; torch raises its error anywhere."""
    try:
        yield
    except RuntimeError as problem:
        if not re.match(r"DataLoader worker .*(exited unexpectedly|is killed by signal)", str(problem)):
            raise
        raise UserError(
            "a process that reads the data set ended before its work, as when memory runs out: use fewer workers, or "
            "workers=0, which reads in this process and shows its errors"
        ) from None


def _as_it_is(found: object) -> object:
    return found


def _stored_labels(dataset: Dataset) -> object:
    """Labels from TensorDataset, or the attributes `targets` or `labels`; None if there are none."""
    if isinstance(dataset, Subset):
        whole = _stored_labels(dataset.dataset)
        whole = whole if whole is None or isinstance(whole, Tensor) else np.asarray(whole)
        return None if whole is None else whole[np.asarray(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1] if len(dataset.tensors) > 1 else None
    if getattr(dataset, "target_transform", None) is not None:  # the attributes are before it
        return None
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if hasattr(found, "__len__") and not isinstance(found, dict) and len(found) == len(dataset):
            return found
    return None
