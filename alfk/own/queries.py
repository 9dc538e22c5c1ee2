"""One acquisition step for an active-learning loop of your own: which images to label next, and why."""

import contextlib
import csv
import dataclasses
import io
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from alfk.data.arrays import check_labels, positions
from alfk.data.image_files import ImageFiles
from alfk.data.items import worker_deaths
from alfk.data.split import Split, check_columns
from alfk.method.acquisition import acquire, check_query_size, get_method, measure
from alfk.method.inputs import POOL, VALIDATION, Sampling
from alfk.method.perturbation import DEFAULT_COPIES, STRATEGIES, Strategy
from alfk.method.registry import Method, Situation
from alfk.method.selection import Selection
from alfk.networks.contract import FEW, check_model
from alfk.networks.modes import computing, prepare
from alfk.own.linear import classifier_of
from alfk.own.percentiles import percentiles
from alfk.support.errors import UserError
from alfk.support.files import atomic

if TYPE_CHECKING:
    import pandas

CLASS_COLUMNS = (
    "pseudo_label",
    "prediction",
    "error_label",
    "error_prediction",
    "stands_for_label",
    "stands_for_prediction",
)
FOLLOWING = {"similarity": "percentile", "matches": "error_label"}  # columns that a query adds to those of a selection
DECIMALS = {"similarity": 4, "percentile": 1}  # decimals of numbers in a table


@dataclasses.dataclass(frozen=True)
class Query(Selection):
    """The pool images to label next and, for each of them, why (attributes: see `Selection`).

    Attributes:
        method: key of the acquisition method.
        error_label: (n,) int64, the true class of the validation image that the chosen image matches.
        percentile: (n,) float64, the share, in percent, of pairs of an available pool image and a misclassified
            validation image that are less similar than the chosen image and its match; of large sets, of evenly spaced
            images. 97 means that 3 % of pairs are as similar. None without matches or without a measurement.
        classes: names of the classes, None if they are numbers.
        pool_size, validation_size: numbers of images of both sets; None if they are not known.
    """

    method: str = ""
    error_label: Tensor | None = None
    percentile: Tensor | None = None
    classes: tuple[str, ...] | None = None
    pool_size: int | None = None
    validation_size: int | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def reasons(self) -> dict[str, Tensor]:
        """See `Selection`; with `percentile` after `similarity` and `error_label` after `matches`, as in a table."""
        columns: dict[str, Tensor] = {}
        for name, values in super().reasons.items():
            columns.setdefault(name, values)
            following = FOLLOWING.get(name)
            if following and getattr(self, following) is not None:
                columns[following] = getattr(self, following)
        return columns

    @classmethod
    def of(
        cls,
        selection: Selection,
        method: str,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        percentile: Tensor | None = None,
        pool_size: int | None = None,
    ) -> "Query":
        """A query from a selection.

        Args:
            labels: (V,) int64, of the validation set.
        """
        values = {field.name: getattr(selection, field.name) for field in dataclasses.fields(Selection)}
        matches = selection.matches
        error_label = None if matches is None or labels is None else labels.cpu()[matches]
        return cls(
            **values,
            method=method,
            error_label=error_label,
            percentile=percentile,
            classes=tuple(classes) if classes else None,
            pool_size=pool_size,
            validation_size=None if labels is None else len(labels),
        )

    def rows(
        self, names: Sequence[object] | None = None, validation_names: Sequence[object] | None = None
    ) -> list[dict[str, object]]:
        """One dictionary per chosen image.

        Args:
            names: of all pool images in order, e.g. files; a column `file` is added to `index`. A pandas Series is read
                by position too, whatever its index.
            validation_names: likewise for `matches`, in the column `matches_file`.
        Raises:
            UserError: not one name for each image.
        """
        columns: dict[str, list[object]] = {}
        for name, values in {"index": self.indices, **self.reasons}.items():
            columns[name] = values.tolist()
            if name == "index" and names is not None:
                columns["file"] = _named(columns["index"], names, "pool", self.pool_size)
            if name == "matches" and validation_names is not None:
                found = _named(columns["matches"], validation_names, "validation", self.validation_size)
                columns["matches_file"] = found
            if name in CLASS_COLUMNS:
                columns[name] = [self.class_name(label) for label in columns[name]]
            if name in DECIMALS:
                columns[name] = [round(value, DECIMALS[name]) for value in columns[name]]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def class_name(self, label: int) -> object:
        """The name of a class, or its number; None for -1."""
        if label == -1:
            return None
        return self.classes[label] if self.classes and 0 <= label < len(self.classes) else label

    def to_csv(
        self,
        path: str | Path,
        names: Sequence[object] | None = None,
        validation_names: Sequence[object] | None = None,
    ) -> None:
        """Write `rows` as a CSV file. Raises UserError if it cannot be written."""
        write_csv(path, self.rows(names, validation_names), ["index"])

    def to_frame(
        self, names: Sequence[object] | None = None, validation_names: Sequence[object] | None = None
    ) -> "pandas.DataFrame":
        """`rows` as a table. Raises UserError if pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UserError("to_frame needs pandas: pip install pandas, or use query.rows()") from None
        return pandas.DataFrame(self.rows(names, validation_names))


def _named(positions: Sequence[int], names: Sequence[object], what: str, count: int | None) -> list[str]:
    """The names at some positions of the names of all `count` images."""
    if isinstance(names, str | Mapping | Set):
        raise UserError(f"names of {what} images are a {type(names).__name__}: give a list, in the order of the images")
    names = list(names)  # a pandas Series would be indexed by its labels
    if len(names) != count if count is not None else max(positions, default=-1) >= len(names):
        there = f"{count} {what} images" if count is not None else f"{what} image {max(positions)}"
        raise UserError(f"there are {len(names)} names for {there}: give the names of all {what} images, in order")
    return [str(names[i]) for i in positions]


FORMULA = re.compile(r"'*[=+\-@\t\r\n]")  # how texts begin that a spreadsheet may execute; escaped or not


def escaped(value: object) -> object:
    """A cell of a CSV file: an apostrophe precedes a text that a spreadsheet may execute; numbers stay as they are."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def unescaped(cell: str) -> str:
    """The text whose `escaped` form is a cell."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


class _Lines(io.StringIO):
    """Text with line ends LF, from a csv.writer with CR LF: with LF it would not quote a CR inside a name."""

    def write(self, line: str) -> int:
        return super().write(line.removesuffix("\r\n") + "\n")


def write_csv(
    path: str | Path, rows: Sequence[dict[str, object]], heads: Sequence[str] = (), encoding: str = "utf-8"
) -> None:
    """Write rows with the same keys as a CSV file, with texts `escaped`. Raises UserError if it cannot be written.

    Args:
        heads: names of the columns if there is no row.
        encoding: "utf-8", or "utf-8-sig" with the mark by which spreadsheets recognise it.
    """
    text = _Lines()
    writer = csv.DictWriter(text, list(rows[0]) if rows else list(heads))
    writer.writeheader()
    writer.writerows({key: escaped(value) for key, value in row.items()} for row in rows)
    content = text.getvalue().encode(encoding, "surrogateescape")  # names of files that are not UTF-8
    with atomic(Path(path)) as file:
        file.write(content)


def query(
    method: str,
    model: nn.Module | Sequence[nn.Module],
    pool: Split,
    validation: Split | None,
    n: int,
    *,
    labelled: Tensor | np.ndarray | Sequence[int] | None = None,
    taps: Sequence[int] | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | int | None = None,
    samples: int = 128,
    strategy: Strategy | None = None,
    annotate: Callable[[Tensor], Tensor] | None = None,
    rare_classes: Sequence[int] | None = None,
) -> Query:
    """The n pool images to label next and why: one acquisition step for your own active-learning loop.

    In a process group of torch.distributed all processes must call it with equal arguments, and share the computation.
    To call it in one process alone, use `alfk.distributed.single_process()`.

    Args:
        method: a key of METHODS; "Rzg_pz" is the paper's (Section 4.4).
        model: any module that returns (logits (B, C), list of taps), each tap (B, c, h, w) or (B, c), c at least 2;
            `alfk.tapped` makes one of any network. For uncertainty methods one with dropout layers, or a list of such.
            For splits of embeddings (N, D) also a linear classifier: `alfk.linear(weights, bias)`, or a fitted one of
            scikit-learn whose probabilities are a softmax.
        pool: its labels may be None (except for the oracle Rzg_true).
        validation: labelled, distributed as the test data; may be None for methods that do not use it.
        labelled: positions of pool images that are labelled already (k,), or a boolean mask (N,). Uncertainty methods
            draw at random while there are none.
        taps: indices into the list of taps that make the descriptor; all if None.
        batch_size: images per forward pass; affects rounding and dropout masks. If None, see `default_batch`.
        generator: source of the random draws (start of k-centre, dropout masks, ...), or a seed; seed 0 if None.
        samples: K of the uncertainty methods and of the estimators from perturbed copies.
        strategy: how copies are perturbed; if None by rotation and noise as in the paper's release.
        annotate: pool positions (k,) -> their labels (k,), numbers or names of the pool's `classes`. "glister" asks for
            the labels of `labelled`; "galaxy", "galaxy_v" and "direct" ask for these first, then for labels of images
            that they choose, the first two for one at a time, "direct" for up to 20.
        rare_classes: numbers of the classes that are known to be rare ("flqmi_rare").
    Raises:
        UserError: unknown method, fewer than n unlabelled images, arguments that do not fit together, or a model that
            breaks the contract (`alfk.networks.contract`).
    """
    # Check
    definition = get_method(method)
    _check_arguments(definition, taps, batch_size, samples, annotate)
    validation = checked_validation(definition, pool, validation)
    rare_classes = _checked_rare_classes(definition, rare_classes, validation)
    situation = Situation(
        available=_available(pool, labelled),
        n=_whole_number(n, "the query size"),
        generator=_generator(generator),
        validation_labels=None if validation is None else validation.labels,
        annotate=None if annotate is None else _checked_annotator(annotate, pool),
        rare_classes=rare_classes,
        classes=len(pool.classes) if pool.classes else None,
    )
    check_query_size(situation)
    measures = definition.needs_passes and not (definition.random_first and situation.available.all())
    batch_size = batch_size or default_batch(pool)
    with computing(), out_of_memory(batch_size), worker_deaths():
        if measures:
            networks = _checked_networks(definition, model, pool, validation, taps, samples)
            # Measure
            sampling = Sampling(situation.generator, samples, strategy or STRATEGIES[DEFAULT_COPIES])
            situation.measurement = measure(definition, networks, pool, validation, sampling, taps, batch_size)
        # Choose
        selection = acquire(definition, situation)
        # Explain
        percentile = percentiles(definition.key, selection, situation)
    if definition.needs_passes and not measures:
        selection = dataclasses.replace(selection, at_random=len(selection.indices))
    classes = (validation and validation.classes) or pool.classes
    return Query.of(selection, method, situation.validation_labels, classes, percentile, len(pool))


def select(method: str, model: nn.Module | Sequence[nn.Module], *arguments: object, **options: object) -> Tensor:
    """`query(...).indices`: (n,) int64 on the CPU, positions in the pool, in the order they were chosen."""
    return query(method, model, *arguments, **options).indices


# What the user gives, checked


def _check_arguments(
    method: Method,
    taps: Sequence[int] | None,
    batch_size: int | None,
    samples: int,
    annotate: Callable[[Tensor], Tensor] | None,
) -> None:
    """Raises UserError for taps by name, numbers that are not positive and whole, and a missing annotator."""
    if isinstance(taps, str | int) or any(isinstance(tap, str) for tap in taps or ()):
        raise UserError(f"taps are positions in the model's list of taps, as (0, 1), not {taps!r}: names go to tapped")
    for number, name in ((batch_size, "batch_size"), (samples, "samples")):
        if number is not None and _whole_number(number, name) < 1:
            raise UserError(f"{name} is at least 1, not {number}")
    for key, what in (("annotation", "asks for labels while it chooses"), ("labels", "asks for the known labels")):
        if key in method.inputs and not callable(annotate):
            raise UserError(f"{method.key} {what}: give annotate, positions (k,) -> labels (k,)")


def checked_validation(method: Method, pool: Split, validation: Split | None) -> Split | None:
    """The validation set, with the mean and std of the pool where its own were not given.

    Raises:
        UserError: pool and validation set do not go together, or are no splits.
    """
    for split, what in ((pool, "pool"), (validation, "validation set")):
        needed = what == "pool" or method.needs_validation
        if not isinstance(split, Split) and (split is not None or needed):
            given = type(split).__name__
            raise UserError(f"the {what} has to be an alfk.Split, not {given}: alfk.Split.of(images, labels) makes one")
    if validation is None or not method.needs_validation:
        return validation
    if method.needs_validation_labels and validation.labels is None:
        raise UserError("the validation set has no labels: alfk.Split.of(images, labels)")
    if method.pool_label == "true" and pool.labels is None:
        raise UserError(f"the oracle {method.key} needs the labels of the whole pool: alfk.Split.of(images, labels)")
    if not len(validation):
        raise UserError("the validation set is empty")
    if pool.device != validation.device:
        raise UserError(f"the pool is on {pool.device}, the validation set on {validation.device}: use .to(device)")
    if None not in (pool.classes, validation.classes) and pool.classes != validation.classes:
        raise UserError(
            f"pool and validation set number their classes differently, {list(pool.classes)[:5]} and "
            f"{list(validation.classes)[:5]}: make the validation set with like=pool, or both with the same classes"
        )
    shapes = [_image_shape(split) for split in (pool, validation)]
    if shapes[0] != shapes[1]:
        raise UserError(f"pool images are {shapes[0]}, validation images {shapes[1]}: give both the same size")
    check_columns(pool, validation.columns, "the validation set")
    if validation.computed and len(pool.mean) == len(validation.mean):
        return validation.normalised_like(pool)
    if (pool.mean, pool.std) != (validation.mean, validation.std):
        raise UserError(
            "pool and validation set have different mean and std: alfk.Split.of(images, labels, like=pool) takes the "
            "pool's"
        )
    return validation


def _checked_rare_classes(
    method: Method, given: Sequence[int] | None, validation: Split | None
) -> tuple[int, ...] | None:
    """The rare classes. Raises UserError if the method needs them, or none has a validation image."""
    if "rare_classes" not in method.inputs:
        return None
    try:
        given = () if given is None or isinstance(given, str) else list(given)
    except TypeError:  # a single number
        given = ()
    if not given:
        raise UserError(f"{method.key} needs to know which classes are rare: give rare_classes=[...], their numbers")
    rare = tuple(_whole_number(each, "a rare class") for each in given)
    missing = sorted(set(rare) - set(validation.labels.tolist()))
    if missing:
        raise UserError(f"no validation image is of the rare class {missing[0]}: numbers of classes start at 0")
    return rare


def _checked_annotator(annotate: Callable[[Tensor], object], pool: Split) -> Callable[[Tensor], Tensor]:
    """`annotate` with labels (k,) int64 on the CPU. When called, it raises UserError for values that are not labels."""

    def labels_of(positions: Tensor) -> Tensor:
        given = annotate(positions)
        try:
            if given is None:
                raise UserError("it returned None, not a label for each position")
            return pool.subset(positions, given).labels.cpu()
        except UserError as problem:
            raise UserError(f"annotate: {problem}") from None

    return labels_of


def _available(pool: Split, labelled: Tensor | np.ndarray | Sequence[int] | None) -> Tensor:
    """(N,) bool: the images without a label. Raises UserError."""
    available = torch.ones(len(pool), dtype=torch.bool)
    available[positions(labelled, len(pool), "labelled")] = False
    return available


def _checked_networks(
    method: Method,
    model: nn.Module | Sequence[nn.Module],
    pool: Split,
    validation: Split | None,
    taps: Sequence[int] | None,
    samples: int,
) -> list[nn.Module]:
    """The networks that are computed, each run once on a few images.

    Raises:
        UserError: they do not fit the method, the number of samples, the images or the labels.
    """
    models = model if isinstance(model, list | tuple | nn.ModuleList) else [model]
    networks = [prepare(classifier_of(each, pool, validation)) for each in models]
    if method.needs_uncertainty and (not networks or samples % len(networks)):
        raise UserError(f"{samples} samples cannot be shared equally by {len(networks)} models: change samples")
    if len(networks) != 1 and not method.needs_uncertainty:
        raise UserError(f"{method.key} uses one network, not an ensemble of {len(networks)}")
    used = taps if taps is not None or method.needs_descriptors else ()
    images, _ = next(pool.subset(range(min(FEW, len(pool)))).batches(FEW))
    for network in networks:
        classes = check_model(network, images, used, scores=method.pool_label is not None)
    _check_classes(method, classes, pool, validation)
    return networks


def _check_classes(method: Method, outputs: int, pool: Split, validation: Split | None) -> None:
    """Raises UserError if a network has too many outputs for the method, too few for the labels that it uses, or not
    as many as classes are named.
    """
    if not method.needs_validation:
        return
    method.check_classes(outputs)
    if not method.needs_validation_labels:
        return
    check_labels(validation.labels, outputs, VALIDATION)
    names = validation.classes or ()
    if names and len(names) != outputs:
        raise UserError(
            f"the model has {outputs} outputs, but there are {len(names)} classes: change its last layer, or name all "
            "of its classes, classes=[...], when the pool is made"
        )
    if method.pool_label == "true":
        check_labels(pool.labels, outputs, POOL)


def _whole_number(n: object, what: str) -> int:
    try:
        return operator.index(n)
    except TypeError:
        raise UserError(f"{what} is a whole number, not {n!r}") from None


def _generator(given: torch.Generator | int | None) -> torch.Generator:
    if isinstance(given, torch.Generator):
        return given
    return torch.Generator().manual_seed(0 if given is None else _whole_number(given, "a seed"))


# Batches


def default_batch(split: Split) -> int:
    """Images per forward pass: 1,000 of up to 32 x 32 pixels, of larger ones as many pixels in all, but at least 16."""
    shape = _image_shape(split)
    pixels = shape[1] * shape[2] if len(shape) == 3 else 1
    return max(16, min(1000, 1000 * 32 * 32 // pixels))


def _image_shape(split: Split) -> tuple[int, ...]:
    """(C, H, W) or (D,) of a split's images."""
    if isinstance(split.store, ImageFiles):
        return 3, split.store.size, split.store.size
    return tuple(split.store.shape[1:])


@contextlib.contextmanager
def out_of_memory(batch_size: int) -> Iterator[None]:
    """Raises UserError if a GPU's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"the GPU's memory does not suffice for batches of {batch_size}: lower batch_size") from None
