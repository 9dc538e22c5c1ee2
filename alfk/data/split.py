"""Splits: images, labels and batches on a device, with the same interface for images in memory and in files."""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alfk.data import arrays
from alfk.data.image_files import LOADERS, ImageFiles, default_workers, has_dali
from alfk.data.items import DatasetItems, HuggingFaceItems, is_hugging_face, own_classes, worker_deaths
from alfk.support.errors import UserError

UNOFFICIAL = "unofficial"  # prefix of the source of images that are not from the data set's official files
SAMPLE, AT_ONCE = 1000, 100  # images that mean and std are computed from, if they are not in memory; read at a time

Numbers = float | Sequence[float] | np.ndarray | Tensor  # one, or one per channel


class Split:
    """Images stored as uint8 (or float in [0, 1]) on one device, or in files, and normalised per batch.

    `Split.of` makes one from arrays, tensors, lists of images and data sets of torch, `Split.from_files` from files.

    A subset is a view: it holds row indices and shares the images of its parent split, so that a pool of half a million
    images exists once, in memory or memory-mapped from a file.

    Args:
        images: (N, C, H, W) uint8, or float already scaled to [0, 1]; features (N, D) float of any range; or N image
            files. With mean 0 and std 1 float images may have any range: they are not normalised.
        labels: (N,) integers or names of `classes`, or None if they are unknown (a pool to be labelled).
        mean, std: per channel or column, or one for all; of images on the [0, 1] scale.
        rows: (n,) int64, indices of this split's images, in order, with labels (n,); all images if None.
        source: identifier of the files that the images are from, recorded in a run's manifest; None if the data set has
            one version only.
        classes: names of the classes 0, 1, ...; None if they have none.
        unknown_labels: whether single labels may be unknown; they are -1 (see `arrays.as_labels`).
    Attributes:
        in_files: whether images are read batch by batch, from files or a data set, and not stored in memory.
        computed: whether mean or std were computed from the split's own images.
        columns: names of the columns of a pandas table; None for anything else.
        left_out: files of other types, and folders inside classes, that lie beside the images and are not in the split.
    Raises:
        UserError: an argument does not fit. Float images are read once to check it; uint8 images are not.
    """

    def __init__(
        self,
        images: Tensor | np.ndarray | Sequence | ImageFiles | DatasetItems,
        labels: Tensor | np.ndarray | Sequence | None,
        mean: Numbers,
        std: Numbers,
        rows: Tensor | None = None,
        source: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        unknown_labels: bool = False,
    ):
        if isinstance(images, np.ndarray | list | tuple):
            images = arrays.as_tensor(images)
        if images.ndim not in (2, 4):
            shape = f", got the shape {tuple(images.shape)}: add a dimension, or use Split.of(images, labels)"
            raise UserError(f"images must be (N, C, H, W), or features (N, D){shape}")
        self.in_files = not isinstance(images, Tensor)
        channels = getattr(images, "shape", (0, 3))[1]  # image files are decoded as RGB
        self.store, self.source, self.unknown_labels = images, source, unknown_labels
        self.computed, self.left_out, self.columns = False, 0, None
        self.mean, self.std = (arrays.per_channel(v, k, channels) for k, v in (("mean", mean), ("std", std)))
        as_they_are = not any(self.mean) and set(self.std) == {1.0}
        self._any_range = images.ndim == 2 or as_they_are
        if images.ndim == 4:
            arrays.check_scale(self.mean, self.std)
        if not self.in_files:
            arrays.check_type(images)
            if images.is_floating_point():
                arrays.check_values(images, self._any_range)
        # Row indices of files are used on the CPU; copying them from a GPU would synchronise with its queue.
        self._row_device = torch.device("cpu") if self.in_files else images.device
        self.rows = None
        if rows is not None:
            self.rows = arrays.positions(rows, len(images), "rows", repeats=True).to(self._row_device)
        self.labels, self.classes = None, arrays.class_names(classes)
        if labels is not None:
            self.labels, self.classes = self._labels(labels, len(self))
        self._set_scale()

    @classmethod
    @worker_deaths()
    def of(
        cls,
        x: object,
        y: object = None,
        *,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        like: "Split | None" = None,
        classes: Sequence[str] | None = None,
        unknown_labels: bool = False,
        workers: int = 0,
    ) -> "Split":
        """A split of images or features, and labels, in the forms that people have them.

        Args:
            x: array or tensor of images (N, H, W), (N, C, H, W) or (N, H, W, C), uint8, or float in [0, 1]; of features
                (N, D), float; a pandas table of features; a list of arrays, tensors or PIL images of one size; or a
                torch.utils.data.Dataset of images or (image, label), or a data set of Hugging Face with a column of
                images, whose items are read when they are needed and taken as its transform gives them.
            y: (N,) integers from 0 or names of classes, as a list, array or tensor. If None, the labels of a data set,
                from its attribute `targets` or `labels` or by reading all its items; of anything else unknown. A data
                set's labels keep the names of its own `classes`.
            mean, std: see `Split`. If None, those of `like`, else computed: from x; of a data set, from up to 1,000
                items, or 0 and 1 if they are floats.
            like: a split whose mean, std and classes are used: `validation = Split.of(xv, yv, like=pool)`.
            classes: names of the classes; if None, of `like`, of the data set, else the distinct names in y, sorted, as
                numbers if all are digits.
            unknown_labels: see `Split`.
            workers: processes that read the items of a data set.
        Raises:
            UserError: an argument would be misread; the line says how to fix it.
        """
        classes = _classes(classes, like)
        if isinstance(x, Mapping):
            raise UserError(f"x is a {type(x).__name__} of {', '.join(map(str, x))}: give one of them, x[...]")
        x = HuggingFaceItems(x) if is_hugging_face(x) else x
        if isinstance(x, torch.utils.data.Dataset):
            store, own = DatasetItems(x, workers), own_classes(x)
            y = _own_labels(store, own, classes, unknown_labels) if y is None else y
            classes = own if classes is None else classes
            if store.dtype != torch.uint8 and like is None:
                mean, std = 0.0 if mean is None else mean, 1.0 if std is None else std
        else:
            store = arrays.as_images(x)
        made = cls._made(store, y, mean, std, like, classes=classes, unknown_labels=unknown_labels)
        made.columns = tuple(map(str, x.columns)) if arrays.is_table(x) else None
        return made

    @classmethod
    def from_files(
        cls,
        paths: Iterable[str | Path],
        labels: object = None,
        *,
        size: int | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        like: "Split | None" = None,
        classes: Sequence[str] | None = None,
        unknown_labels: bool = False,
        loader: str | None = None,
        workers: int | None = None,
    ) -> "Split":
        """A split of image files, decoded batch by batch, scaled and cropped to size x size RGB (see `ImageFiles`).

        Args:
            paths: N files; their folders say nothing about labels.
            labels: (N,) as `y` of `Split.of`; None if unknown.
            size: pixels; if None, that of `like`, else 224.
            mean, std, like, classes, unknown_labels: as in `Split.of`; computed from up to 1,000 files.
            loader: "dali" or "torchvision"; if None, DALI if it is installed.
            workers: threads or processes that decode, at least 1; if None, the CPUs of this process.
        Raises:
            UserError: no files, a missing one, or an argument that does not fit.
        """
        same = like is not None and isinstance(like.store, ImageFiles)
        size = size or (like.store.size if same else 224)
        absolute = [] if isinstance(paths, str | Path) else [os.path.abspath(path) for path in paths]
        if not absolute:
            raise UserError(f"paths is {paths!r}: give a list of image files")
        loader = loader or ("dali" if has_dali() else "torchvision")
        if loader not in LOADERS:
            raise UserError(f"there is no loader {loader!r}: give {' or '.join(map(repr, LOADERS))}")
        for path in absolute:
            if not os.path.isfile(path):
                raise UserError(f"{path} is not there, or not a file: correct or leave out the path")
        root = os.path.commonpath([os.path.dirname(path) for path in absolute])
        below = np.array([os.fsencode(path[len(root) :].lstrip("/")) for path in absolute])
        store = ImageFiles(Path(root), below, size, loader, default_workers() if workers is None else max(1, workers))
        classes = _classes(classes, like)
        return cls._made(store, labels, mean, std, like, classes=classes, unknown_labels=unknown_labels)

    @classmethod
    def _made(
        cls,
        store: Tensor | ImageFiles | DatasetItems,
        labels: object,
        mean: Numbers | None,
        std: Numbers | None,
        like: "Split | None",
        **options: object,
    ) -> "Split":
        """A split whose mean and std are given, or those of `like`, or computed."""
        computed = like is None and (mean is None or std is None)
        made = cls(store, labels, *_normalisation(store, mean, std, like), **options)
        made.computed = computed
        return made

    def __len__(self) -> int:
        return len(self.store) if self.rows is None else len(self.rows)

    @property
    def device(self) -> torch.device:
        return self.store.device

    @property
    def random_access(self) -> bool:
        """Whether images may be read in any order, and a pass stopped early, at no cost: they are in memory."""
        return not self.in_files or getattr(self.store, "keeps", False)

    @property
    def images(self) -> Tensor:
        """(n, C, H, W) or (n, D) in the stored format; a copy if this is a subset or in files."""
        if self.in_files:
            return next(self._stored([torch.arange(len(self))], None))
        return self.store if self.rows is None else self.store[self.rows]

    def to(self, device: torch.device | str) -> "Split":
        """The same split with images and labels on `device`."""
        moved = self._view(store=self.store.to(device))
        moved._row_device = torch.device("cpu") if self.in_files else moved.store.device
        moved.rows = None if self.rows is None else self.rows.to(moved._row_device)
        moved.labels = None if self.labels is None else self.labels.to(moved.device)
        moved._set_scale()
        return moved

    def normalised_like(self, other: "Split") -> "Split":
        """A view of the same images with the mean and std of another split. Raises UserError if these do not fit."""
        _check_scale(self.store, other)
        view = self._view(mean=other.mean, std=other.std, computed=False)
        view._set_scale()
        return view

    def subset(self, rows: object, labels: object = None) -> "Split":
        """A view of some images; mean, std, classes and source are kept.

        Args:
            rows: list, array or tensor of positions (k,), in the order wanted, also repeated; or a boolean mask (n,).
            labels: (k,) integers, or names if the split has `classes`, that replace the labels of these images; for one
                image also a single one.
        Raises:
            UserError: positions or labels that do not fit.
        """
        rows = arrays.positions(rows, len(self), "rows", repeats=True)
        if labels is not None:
            if len(rows) == 1 and (isinstance(labels, str | float | int) or getattr(labels, "ndim", None) == 0):
                labels = [labels.item() if hasattr(labels, "item") else labels]  # numpy's y[tensor([5])] is a number
            labels, classes = self._labels(labels, len(rows))
            if classes != self.classes:  # names would be numbered differently in every subset
                raise UserError(
                    "labels are names, but the split does not know them: make it by alfk.Split.of(images, "
                    "classes=[...]) with the names of all classes"
                )
        elif self.labels is not None:
            labels = self.labels[rows.to(self.device)]
        rows = rows.to(self._row_device)
        return self._view(rows=rows if self.rows is None else self.rows[rows], labels=labels)

    def joined(self, other: "Split") -> "Split":
        """The images of two subsets of the same images, this one's first.

        Raises:
            UserError: the images are stored in different places, or not all are labelled.
        """
        if self.store is not other.store or self.labels is None or other.labels is None:
            raise UserError("only labelled images that were one split before can be trained on together")
        rows = [torch.arange(len(s), device=s._row_device) if s.rows is None else s.rows for s in (self, other)]
        return self._view(rows=torch.cat(rows), labels=torch.cat([self.labels, other.labels]))

    def batches(
        self, batch_size: int, order: Tensor | None = None, seed: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (normalised images (B, C, H, W) or (B, D) float32, positions (B,) int64), the last batch possibly
        smaller.

        Args:
            order: (k,) int64, the positions to visit; all images in order if None.
            seed: of the random augmentation of images in files; if None, they are transformed as for evaluation.
        """
        if order is None:
            order = torch.arange(len(self))
        chunks = order.to(self._row_device).split(batch_size)
        with worker_deaths():
            for positions, stored in zip(chunks, self._stored(chunks, seed), strict=True):
                yield self._normalised(stored), positions.to(self.device, non_blocking=True)

    def _stored(self, chunks: Sequence[Tensor], seed: int | None) -> Iterator[Tensor]:
        rows = chunks if self.rows is None else [self.rows[positions] for positions in chunks]
        if not self.in_files:
            return (self.store[part] for part in rows)
        fetched = self.store.fetch(rows, seed)
        return fetched if _dtype(self.store) == torch.uint8 else self._checked(rows, fetched)

    def _checked(self, rows: Sequence[Tensor], fetched: Iterable[Tensor]) -> Iterator[Tensor]:
        """Float images of a data set, which could not be checked before."""
        for part, stored in zip(rows, fetched, strict=True):
            arrays.check_values(stored, self._any_range, part)
            yield stored

    def _normalised(self, stored: Tensor) -> Tensor:
        if stored.ndim == 2:  # the mean of a column can be large against its std: subtract it first
            return stored.float().sub_(self._mean).mul_(self._gain)
        return stored.float().mul_(self._gain).add_(self._offset)

    def _set_scale(self) -> None:
        """The constants of `_normalised`, on the device of the images."""
        shape = (-1,) if self.store.ndim == 2 else (-1, 1, 1)
        scale = 255.0 if _dtype(self.store) == torch.uint8 else 1.0
        options = {"dtype": torch.float32, "device": self.device}
        mean, spread = (torch.tensor(value, **options).view(shape) for value in (self.mean, self.std))
        self._mean, self._gain, self._offset = mean, 1 / (scale * spread), -mean / spread

    def _labels(self, labels: object, count: int) -> tuple[Tensor, tuple[str, ...] | None]:
        """Labels (count,) int64 on the images' device, and names of classes."""
        arrays.check_digits(labels, self.classes)
        found, classes = arrays.as_labels(labels, self.classes, self.unknown_labels)
        if len(found) != count:
            raise UserError(f"{count} images but {len(found)} labels: give one for each image")
        return found.to(self.device), classes

    def _view(self, **changes: object) -> "Split":
        """A copy that shares the images, without the constructor's checks."""
        view = copy.copy(self)
        vars(view).update(changes)
        return view


def check_columns(pool: Split, others: Sequence[str] | None, whose: str) -> None:
    """Raises UserError if the pool is a pandas table, and other named columns differ from its own.

    Args:
        others: names of columns (D,); None if they have none.
        whose: they are, for the message.
    """
    if pool.columns is None or others is None:
        return
    mine, theirs = (list(map(str, columns)) for columns in (pool.columns, others))
    if mine != theirs:
        raise UserError(
            f"the columns of the pool are {', '.join(mine[:5])}, those of {whose} {', '.join(theirs[:5])}: take the "
            "same ones in the same order, table[list of names]"
        )


class Dataset(NamedTuple):
    """A data set's splits; if `validation` is None, validation images are drawn from `train`."""

    train: Split
    test: Split
    validation: Split | None = None


def _check_scale(store: Tensor | ImageFiles | DatasetItems, like: Split) -> None:
    """Raises UserError if `like` is normalised by a transform of its own, and pixels that are not would be left so."""
    as_they_are = not any(like.mean) and set(like.std) == {1.0}
    if as_they_are and _dtype(like.store) != torch.uint8 and _dtype(store) == torch.uint8:
        raise UserError(
            "the other images are normalised already, so that they have mean 0 and std 1: pass these through the same "
            "transform, or give their mean and std"
        )


def _classes(given: Sequence[str] | None, like: Split | None) -> Sequence[str] | None:
    """The names given, or those of `like`. Raises UserError if both are there and differ."""
    known = None if like is None else like.classes
    if given is not None and known is not None and arrays.class_names(given) != known:
        raise UserError(f"classes differ from those of like, {', '.join(known[:10])}: leave one of them out")
    return known if given is None else given


def _own_labels(store: DatasetItems, own: Sequence[str] | None, classes: Sequence[str] | None, unknown: bool) -> object:
    """The labels of a data set, as names if it has its own, so that `classes` may be in another order or more."""
    labels = store.labels()
    if own is None or labels is None:
        return labels
    names = arrays.names_of(labels, own, unknown)
    others = set(names) - {None} - set(own if classes is None else map(str, classes))
    if others:
        raise UserError(
            f"the data set has the class {min(others)!r}, which is not among the classes: give them the data set's "
            "names, or its labels as y"
        )
    return names


def _dtype(store: Tensor | ImageFiles | DatasetItems) -> torch.dtype:
    return getattr(store, "dtype", torch.uint8)


def _normalisation(
    store: Tensor | ImageFiles | DatasetItems, mean: Numbers | None, std: Numbers | None, like: Split | None
) -> tuple[Numbers, Numbers]:
    """Mean and std as given, or those of `like`, or computed."""
    if mean is not None and std is not None:
        return mean, std
    if like is not None:
        _check_scale(store, like)
        return (like.mean if mean is None else mean), (like.std if std is None else std)
    if isinstance(store, Tensor):
        batches = [store]
        if store.is_floating_point():
            arrays.check_values(store, any_range=store.ndim == 2)
    else:
        rows = torch.linspace(0, len(store) - 1, min(SAMPLE, len(store)), dtype=torch.float64).round().long()
        batches = store.fetch(rows.split(AT_ONCE))
    found = arrays.mean_and_std(batches)
    return (found[0] if mean is None else mean), (found[1] if std is None else std)
