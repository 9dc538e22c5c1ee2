"""Positions, labels and images in the forms that people have them: lists, arrays, tensors, masks, names.

Anything that would be misread without a sign (an integer mask, labels from 1, images from 0 to 255) is refused: every
function raises UserError, with one line that says how to fix it.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alfk.support.errors import UserError

if TYPE_CHECKING:
    import pandas

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA: a dimension of this length can be that of the channels
EQUAL = 1e-9  # values whose relative differences are smaller differ by the rounding of earlier computations
ROUNDED = 1e-3  # of the range of a column, the rounding that is accepted
CHUNK = 2**22  # values that are converted to float64 at a time


def positions(given: object, count: int, what: str, *, repeats: bool = False) -> Tensor:
    """Positions of images among `count`: (k,) int64 on the CPU, in the given order.

    Args:
        given: list, array or tensor of positions, or a boolean mask of length `count`; None or empty for no positions.
        what: name of the argument, for messages.
        repeats: whether a position may occur more than once.
    Raises:
        UserError: fractions, a wrong dimension, a position that is negative, too large or repeated, or integers that
            look like a mask.
    """
    values = torch.empty(0) if given is None else numbers(given, what, "positions or a boolean mask")
    if values.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if values.ndim != 1:
        raise UserError(f"{what} has the shape {tuple(values.shape)}: give positions (k,) or a boolean mask ({count},)")
    values = values.cpu()
    if values.dtype == torch.bool:
        if len(values) != count:
            raise UserError(f"{what} is a mask of length {len(values)} for {count} images: give as many values")
        return values.nonzero().flatten()
    values = _whole(values, what)
    low, high = map(int, values.aminmax())
    if low < 0 or high >= count:
        outside = low if low < 0 else high
        raise UserError(f"{what} has the position {outside}, but there are {count} images: give 0 to {count - 1}")
    if len(values) == count > 2 and high <= 1:  # of up to two images, 0 and 1 can be all positions
        raise UserError(
            f"{what} has {count} integers 0 and 1, as many as images: "
            "if it is a mask, convert it to bool; if not, leave out repeated positions"
        )
    if not repeats:
        distinct, counts = values.unique(return_counts=True)
        if len(distinct) < len(values):
            raise UserError(f"{what} has the position {int(distinct[counts > 1][0])} twice: leave out repeated ones")
    return values


# Labels


def check_labels(labels: Tensor, classes: int, what: str) -> None:
    """Raises UserError unless labels (n,) are integers from 0 to `classes` - 1, the number of a model's outputs.

    Args:
        what: whose labels they are, for messages: "the validation set".
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels of {what} are {_about(labels)}: give class numbers, integers, one for each image (n,)")
    if len(labels) == 0:
        return
    low, high = map(int, labels.to(torch.int64).aminmax())
    if low < 0 or high >= classes:
        raise UserError(
            f"labels of {what} go from {low} to {high}, but the model has {classes} outputs: "
            f"labels are 0 to {classes - 1}"
        )


def as_labels(given: object, classes: Sequence[str] | None, unknown: bool) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels as (n,) int64, and the names of the classes; None if there are no names.

    Args:
        given: list, array or tensor (n,) of whole numbers, or of names of classes.
        classes: the name of class 0, 1, ...; if None, the distinct names, sorted, as numbers if all are digits.
        unknown: whether labels may be unknown: -1, NaN, None, "" or pandas.NA. They become -1.
    """
    names, values = class_names(classes), _python_values(given)
    if values is not None:
        missing = [_is_missing(value) for value in values]
        if any(missing) and not unknown:
            raise UserError(
                f"the label of image {missing.index(True)} is missing: "
                "give it, leave the image out, or allow unknown labels with unknown_labels=True"
            )
        if any(isinstance(value, str) for value in values):
            return _numbered([None if absent else v for v, absent in zip(values, missing, strict=True)], names)
        if any(missing):
            given = [-1 if absent else v for v, absent in zip(values, missing, strict=True)]
    values = numbers(given, "labels", "class numbers or names")
    if values.ndim != 1:
        fix = ", one for each image (of one-hot rows: labels.argmax(1))" if values.ndim == 2 else " (n,)"
        raise UserError(f"labels have the shape {tuple(values.shape)}: give class numbers{fix}")
    if unknown and values.is_floating_point():
        values = values.nan_to_num(nan=-1)
    values = _whole(values, "labels")
    if len(values):
        low, high = map(int, values.aminmax())
        if low < (-1 if unknown else 0):
            raise UserError(
                f"labels go from {low} to {high}: classes are numbered from 0; "
                "-1 stands for an unknown label with unknown_labels=True"
            )
        if names is not None and high >= len(names):
            raise UserError(f"labels go up to {high}, but the {len(names)} classes are 0 to {len(names) - 1}")
    return values, names


def class_names(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of classes as a tuple, distinct and at least one."""
    if classes is None:
        return None
    if isinstance(classes, str | int):
        raise UserError(f"classes={classes!r} is not a list of names: give the name of class 0, 1, ...")
    names = tuple(map(str, classes))
    if not names:
        raise UserError("classes is empty: give the name of class 0, 1, ..., or None")
    if len(set(names)) < len(names):
        twice = next(name for name, times in Counter(names).items() if times > 1)
        raise UserError(f"classes has the name {twice!r} twice: give each class one of its own")
    return names


def check_digits(labels: object, classes: Sequence[str] | None) -> None:
    """Raises UserError for integers where the names of classes are other integers: they may be names or class numbers.

    In a tensor they are class numbers, as `Split.labels` holds them.
    """
    if isinstance(labels, Tensor) or not classes or not all(map(str.isdecimal, classes)):
        return
    is_text = any(isinstance(value, str) for value in _python_values(labels) or ())
    if not is_text and [int(name) for name in classes] != list(range(len(classes))):
        raise UserError(
            f"labels are integers, and so are the names of the classes, {', '.join(classes[:5])}, in an order that is "
            "not 0, 1, ...: give names as text, list(map(str, labels)), or class numbers from 0 as a tensor"
        )


def names_of(labels: object, classes: Sequence[str], unknown: bool) -> list[str | None]:
    """The name of every label, None if it is unknown.

    Args:
        labels, unknown: see `as_labels`.
        classes: the name of class 0, 1, ...
    """
    numbers, names = as_labels(labels, classes, unknown)
    return [None if number < 0 else names[number] for number in numbers.tolist()]


def _python_values(given: object) -> list[object] | None:
    """The labels as a list, if they are one, or an array of text or of objects; else None."""
    if isinstance(given, list | tuple):
        return list(given)
    _check_plain(given, "labels")
    array = np.empty(0) if isinstance(given, Tensor) else np.asarray(given)
    if array.ndim != 1 or array.dtype.kind not in "SUO":
        return None
    return (array.astype(str) if array.dtype.kind == "S" else array).tolist()


def _is_missing(label: object) -> bool:
    """Whether it is None, "", NaN, or NA or NaT of pandas, which are not compared."""
    if label is None or isinstance(label, str):
        return not label
    return label != label if isinstance(label, Real) else type(label).__name__ in ("NAType", "NaTType")


def _numbered(texts: list[object], names: tuple[str, ...] | None) -> tuple[Tensor, tuple[str, ...] | None]:
    """The classes' numbers for their names, -1 for None; see `as_labels`."""
    for text in texts:
        if not isinstance(text, str | None):
            raise UserError(f"labels have names and other values ({text!r}): give names alone or integers alone")
    if names is None:
        distinct = {text for text in texts if text is not None}
        are_digits = all(map(str.isdecimal, distinct))
        names = tuple(sorted(distinct, key=lambda name: (int(name), name) if are_digits else name))
    number = {None: -1} | {name: i for i, name in enumerate(names)}
    for text in texts:
        if text not in number:
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            raise UserError(f"there is no class {text!r}: the classes are {', '.join(names[:20])}{more}")
    return torch.tensor([number[text] for text in texts], dtype=torch.int64), names or None


# Images


def as_images(given: object, rows: Sequence[int] | None = None) -> Tensor:
    """Images as (N, C, H, W), or features as (N, D): uint8 (images only) or float32; shares memory where it can.

    Args:
        given: array or tensor (N, H, W), (N, C, H, W), (N, H, W, C) with 1, 3 or 4 channels or (N, D); a list of
            arrays, tensors or PIL images of one size; or a pandas table (N, D).
        rows: positions of the images of a list, for messages; 0, 1, ... if None.
    """
    values = as_tensor(_numbers_of_table(given) if is_table(given) else given, rows)
    shape = tuple(values.shape)
    if values.ndim not in (2, 3, 4) or 0 in shape:
        raise UserError(f"images have the shape {shape}: give (N, H, W), (N, C, H, W), (N, H, W, C) or features (N, D)")
    check_type(values)
    if values.is_floating_point():
        values = values.float()
    if values.ndim == 3:
        return values.unsqueeze(1)
    if values.ndim == 4 and shape[3] in CHANNELS:
        if shape[1] in CHANNELS:
            raise UserError(
                f"images of the shape {shape} could have channels first or last: permute them to (N, C, H, W) and "
                "give them to Split(images, labels, mean, std), which takes them as they are"
            )
        return values.permute(0, 3, 1, 2)
    return values


def is_table(given: object) -> bool:
    """Whether it is a pandas.DataFrame, without importing pandas."""
    return hasattr(given, "select_dtypes")


def _numbers_of_table(table: "pandas.DataFrame") -> np.ndarray:
    """(N, D) float64, missing values as NaN. Raises UserError for columns that are not numbers."""
    numbers = table.select_dtypes(["number", "bool"])
    others = [str(name) for name in table.columns if name not in numbers.columns]
    if others:
        raise UserError(f"columns that are not numbers: {', '.join(others)}: leave them out, and give labels as y")
    return numbers.to_numpy("float64", na_value=np.nan)


def as_tensor(given: object, rows: Sequence[int] | None = None) -> Tensor:
    """Images of any shape and type as a tensor; a list is stacked."""
    values = _stacked(given, rows or range(len(given))) if isinstance(given, list | tuple) else given
    if isinstance(values, Image.Image | str | Path):
        raise UserError(f"images are a single {type(values).__name__}: give an array (N, ...) or a list of images")
    return numbers(values, "images", "an array or tensor of numbers, or a list of images")


def _stacked(given: Sequence[object], rows: Sequence[int]) -> object:
    """A list of images as one array or tensor; a list of anything else as it is."""
    if not given:
        raise UserError("there are no images: give at least one")
    if isinstance(given[0], str | Path):
        raise UserError("images are names of files: use Split.from_files(paths, labels)")
    images = [_pixels(image) if isinstance(image, Image.Image) else image for image in given]
    kind = Tensor if isinstance(images[0], Tensor) else np.ndarray
    if not all(isinstance(image, kind) for image in images):
        return given
    for row, image in zip(rows, images, strict=True):
        _check_plain(image, f"image {row}")
        if (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            raise UserError(
                f"images differ: image {rows[0]} is {_about(images[0])}, image {row} is {_about(image)}: "
                "resize and convert them to the same shape and type"
            )
    return torch.stack(images) if kind is Tensor else np.stack(images)


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise UserError(f'PIL images of mode {image.mode} have no fixed range: scale them to 8 bits, mode "L" or "RGB"')
    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB"))


def check_type(values: Tensor) -> None:
    """Raises UserError unless they are floats, or uint8 images, that keep their digits in float32."""
    _check_plain(values, "images")
    if values.dtype == torch.float64 and values.ndim == 2:
        _check_digits_left(values)
    if values.is_floating_point() or (values.dtype == torch.uint8 and values.ndim > 2):
        return
    name = str(values.dtype).removeprefix("torch.")
    if values.ndim == 2:
        raise UserError(f"features (N, D) are {name}: convert them to float32")
    raise UserError(
        f"images are {name}: convert them to uint8 if they go from 0 to 255, "
        "else to floats in [0, 1] (divided by their largest possible value)"
    )


def _check_digits_left(columns: Tensor) -> None:
    """Raises UserError if float32 rounds a column of features (n, D) to few of its values, as time stamps."""
    low, high = columns.amin(0), columns.amax(0)
    differ, rounding = high - low > EQUAL * high.abs(), (columns.float() - columns).abs().amax(0)
    few = differ & rounding.isfinite() & (rounding > ROUNDED * (high - low))
    if few.any():
        at = int(few.nonzero()[0])
        raise UserError(
            f"column {at} goes from {low[at]:.10g} to {high[at]:.10g}, where float32 rounds its differences away: "
            "subtract the same number from this column of all splits, as its smallest value in the pool"
        )


def check_values(values: Tensor, any_range: bool, rows: Tensor | None = None) -> None:
    """Raises UserError if float images (n, C, H, W) or features (n, D) are not finite, or outside [0, 1].

    Args:
        any_range: whether values outside [0, 1] are accepted.
        rows: (n,) positions of the images, for messages; 0, 1, ... if None.
    """
    if values.numel() == 0:
        return
    low, high = map(float, values.aminmax())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = next(i for i, image in enumerate(values) if not image.isfinite().all())
        what = "image" if values.ndim == 4 else "row"
        row = bad if rows is None else int(rows[bad])
        raise UserError(f"{what} {row} has values that are NaN or infinite in float32: fix it or leave it out")
    slack = 1e-3  # rounding of resized images
    if any_range or (low >= -slack and high <= 1 + slack):
        return
    found = f"float images have to lie in [0, 1], but these go from {low:.4g} to {high:.4g}"
    if low >= -slack:
        raise UserError(f"{found}: divide them by 255, or by their largest possible value")
    raise UserError(f"{found}: if your own transform has normalised them, give mean=0, std=1; if not, scale or clamp")


# Mean and standard deviation


def per_channel(given: object, name: str, channels: int) -> tuple[float, ...]:
    """A mean or std as finite numbers, one for each channel (or column), or one for all; a std is positive."""
    _check_plain(given, name)
    try:
        values = given.detach().cpu().double().numpy() if isinstance(given, Tensor) else np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name}={given!r} is not a number or a list of numbers: give one for each channel") from None
    values = values.flatten()
    if len(values) not in (1, channels):
        raise UserError(f"{name} has {len(values)} values, but there are {channels} channels: give one for each")
    if not np.isfinite(values).all() or (name == "std" and not (values > 0).all()):
        raise UserError(f"{name} is {values.tolist()}: give finite {'positive ' * (name == 'std')}numbers")
    return tuple(values.tolist())


def check_scale(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raises UserError unless mean and std of images are on the scale of [0, 1]."""
    if min(mean) < 0 or max(mean) > 1 or max(std) > 1:
        mean, std = (tuple(round(value, 4) for value in values) for values in (mean, std))
        raise UserError(
            f"mean {mean} and std {std} are not on the scale of images in [0, 1]: divide both by 255 if they are of "
            "0 to 255"
        )


def mean_and_std(batches: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel or column, in one pass; 1 in place of a standard deviation of 0.

    Args:
        batches: (B, C, H, W) or (B, D); uint8 is scaled to [0, 1].
    """
    parts = (part for batch in batches for part in batch.split(max(1, CHUNK // batch[0].numel())))
    count, shift, total, squares = 0, None, 0, 0
    for part in parts:
        values = part.double() / (255 if part.dtype == torch.uint8 else 1)
        axes = (0, *range(2, part.ndim))  # all but the channels
        # Sums of squares of values far from 0 would cancel: sum what is left after the mean of the first part.
        shift = values.mean(axes, keepdim=True) if shift is None else shift
        values = values - shift
        total, squares = total + values.sum(axes), squares + values.square().sum(axes)
        count += values.numel() // values.shape[1]
    mean = shift.flatten() + total / count
    std = (squares / count - (total / count) ** 2).clamp(min=0).sqrt()
    float32 = torch.finfo(torch.float32)
    constant = std <= (mean.abs() * float32.eps).clamp(min=float32.tiny)  # above 0 by rounding
    return tuple(mean.tolist()), tuple(std.masked_fill(constant, 1).tolist())


# Numbers


def numbers(given: object, name: str, wanted: str) -> Tensor:
    """A tensor as it is, anything else that holds numbers by way of numpy."""
    _check_plain(given, name)
    if isinstance(given, Tensor):
        return given.detach()
    try:
        array = np.asarray(given)
        if array.dtype == object and array.ndim:
            array = np.array(array.tolist())  # numbers in a column of objects
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors on a GPU in a list
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name}: give {wanted}, not {_about(given)}")
    if array.dtype.kind == "u" and array.dtype != np.uint8 and name != "images":
        array = array.astype(np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    if any(stride < 0 for stride in array.strides):  # a flipped view
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # a memory-mapped file; it is read
        return torch.from_numpy(array)


def _check_plain(given: object, name: str) -> None:
    """Raises UserError for complex numbers, a sparse tensor, and an array or tensor whose masked values would count."""
    if isinstance(given, Tensor) and given.is_complex():
        raise UserError(f"{name} are complex: give real numbers")
    if type(given).__name__ == "MaskedTensor":
        raise UserError(f"{name}: a masked tensor is not taken: give tensor.to_tensor(value), or leave these rows out")
    if isinstance(given, Tensor) and given.layout != torch.strided:
        raise UserError(f"{name}: a sparse tensor is not taken: give tensor.to_dense()")
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise UserError(f"{name}: some values are masked: give array.filled(value), or leave these rows out")


def _whole(values: Tensor, what: str) -> Tensor:
    """Whole numbers of any type as int64."""
    if values.is_complex() or (values.is_floating_point() and not bool((values.frac() == 0).all())):
        raise UserError(f"{what}: these are not whole numbers: give integers")
    return values.to(torch.int64)


def _about(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{tuple(value.shape)} {value.dtype}".replace("torch.", "")
    return f"a {type(value).__name__}"
