"""When to stop labelling: accuracy on held-out images after each round, and whether the last labels raised it.

The intervals (95 %) are for other images of the same kind and these same models: training again, from another seed,
varies the accuracy further.

References:
    E. B. Wilson (1927). Probable inference, the law of succession, and statistical inference. JASA 22, 209-212.
    D. G. Bonett, R. M. Price (2012). Adjusted Wald confidence interval for a difference of binomial proportions based
        on paired data. Journal of Educational and Behavioral Statistics 37, 479-488. Recommended by M. W. Fagerland,
        S. Lydersen, P. Laake (2014), Statistics in Medicine 33, 2850-2875.
"""

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from alfk.data.arrays import as_labels
from alfk.support.errors import UserError

Z = NormalDist().inv_cdf(0.975)  # 1.96, for intervals of 95 %
RECENT = 3  # rounds whose labels are judged together
WORTH = 1.0  # points of accuracy that a round has to add to be worth its labels
LISTED = 10  # classes whose errors are printed

Classes = Tensor | np.ndarray | Sequence[int] | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval: an accuracy in percent, or a change of accuracy in points."""

    value: float
    low: float
    high: float

    @property
    def margin(self) -> float:
        """Distance of the farther end of the interval."""
        return max(self.high - self.value, self.value - self.low)

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def wilson(correct: int, images: int) -> Estimate:
    """Accuracy in percent with Wilson's score interval."""
    p, spread = correct / images, Z**2 / images
    centre = (p + spread / 2) / (1 + spread)
    half = (spread * p * (1 - p) + spread**2 / 4) ** 0.5 / (1 + spread)
    return Estimate(100 * p, 100 * (centre - half), 100 * (centre + half))


def paired_change(gained: int, lost: int, images: int) -> Estimate:
    """Change of accuracy in points between two models on the same images, with Bonett and Price's interval.

    Args:
        gained: number of images that the second model alone classifies correctly.
        lost: number of images that the first model alone classifies correctly.
    """
    up, down = (gained + 1) / (images + 2), (lost + 1) / (images + 2)
    half = Z * ((up + down - (up - down) ** 2) / (images + 2)) ** 0.5
    return Estimate(100 * (gained - lost) / images, 100 * (up - down - half), 100 * (up - down + half))


@dataclasses.dataclass(frozen=True)
class Progress:
    """What labels brought, after r rounds (see `progress_report`); printed, it is a text for people.

    Attributes:
        labelled: number of labels after each round (r,).
        classes: names of the C classes, or their numbers.
        images: number of held-out images of each class (C,).
        errors: how many of them are misclassified after each round (r, C).
        accuracy: on all held-out images after each round (r,), percent, with Wilson's interval.
        balanced_accuracy: mean of the accuracies of the classes that have held-out images (r,), percent.
        changes: of the accuracy from each round to the next (r - 1,), points; pairs of the same images.
        recent_change: of the accuracy over the last `recent_rounds` rounds, points; None after one round.
        recent_rounds: r - 1, at most RECENT.
        clean: accuracy of the model trained on the clean images alone, percent; None if it was not given.
        ahead_of_clean: the last accuracy minus that, points; None if it was not given.
    """

    labelled: tuple[int, ...]
    classes: tuple[str, ...]
    images: tuple[int, ...]
    errors: tuple[tuple[int, ...], ...]
    accuracy: tuple[Estimate, ...]
    balanced_accuracy: tuple[float, ...]
    changes: tuple[Estimate, ...]
    recent_change: Estimate | None
    recent_rounds: int
    clean: Estimate | None
    ahead_of_clean: Estimate | None

    @property
    def verdict(self) -> str:
        """What the interval of `recent_change` says; a rise that has ended is seen up to RECENT rounds later.

        - "first": there is one round only.
        - "falls": the interval lies below 0.
        - "flat": it includes 0, and its upper end is less than WORTH points a round.
        - "little": it lies above 0, and its upper end is less than WORTH points a round.
        - "rises": it lies above 0, and its upper end does not.
        - "unclear": it includes 0, and its upper end is at least WORTH points a round.
        """
        change = self.recent_change
        if change is None:
            return "first"
        if change.high < 0:
            return "falls"
        if change.high < WORTH * self.recent_rounds:
            return "little" if change.low > 0 else "flat"
        return "rises" if change.low > 0 else "unclear"

    @property
    def sentence(self) -> str:
        """The verdict with the figures that it follows from."""
        change = self.recent_change
        if change is None:
            return f"Accuracy with {self.labelled[0]:,} labels is {self.accuracy[0]} %: the next round shows a change."
        labels = self.labelled[-1] - self.labelled[-1 - self.recent_rounds]
        conclusion = {
            "rises": "more labels of this kind still help",
            "little": f"more labels of this kind help little, by less than {WORTH:g} point a round",
            "flat": "more labels of this kind no longer help",
            "falls": "check these labels and the training before you ask for more",
            "unclear": f"with {sum(self.images):,} held-out images a change under {change.margin:.1f} points cannot be "
            "seen; more clean images for checking would tell",
        }[self.verdict]
        found = _in_words(change, "raised accuracy by", "lowered accuracy by", "changed accuracy by")
        return f"The last {labels:,} labels {found}: {conclusion}."

    @property
    def clean_sentence(self) -> str:
        """Whether the labels are ahead of the clean images alone; empty if these were not given."""
        if self.clean is None:
            return ""
        found = _in_words(self.ahead_of_clean, "is higher by", "is lower by", "cannot be told from it:")
        return (
            f"Training on the clean images alone gives {self.clean.value:.1f} %: accuracy with "
            f"{self.labelled[-1]:,} labels {found}."
        )

    def rows(self) -> list[dict[str, object]]:
        """One dictionary per round, for example for `pandas.DataFrame(report.rows())`.

        Keys: labels; accuracy, low, high and balanced_accuracy, percent; errors; change, change_low and change_high
        since the round before, points, None in the first row.
        """
        return [
            {
                "labels": self.labelled[i],
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                "balanced_accuracy": self.balanced_accuracy[i],
                "errors": sum(self.errors[i]),
                "change": self.changes[i - 1].value if i else None,
                "change_low": self.changes[i - 1].low if i else None,
                "change_high": self.changes[i - 1].high if i else None,
            }
            for i, accuracy in enumerate(self.accuracy)
        ]

    def class_rows(self) -> list[dict[str, object]]:
        """One dictionary per class with held-out images, most errors first.

        Keys: class; images; errors; errors_before, by the round before, None after one round.
        """
        before = self.errors[-2] if len(self.errors) > 1 else [None] * len(self.classes)
        rows = [
            {"class": name, "images": images, "errors": errors, "errors_before": earlier}
            for name, images, errors, earlier in zip(self.classes, self.images, self.errors[-1], before, strict=True)
            if images
        ]
        return sorted(rows, key=lambda row: -row["errors"])

    def __str__(self) -> str:
        changes = ["", *(f"{each.value:+.1f} ({each.low:+.1f} to {each.high:+.1f})" for each in self.changes)]
        rounds = [
            [f"{row['labels']:,}", str(accuracy), f"{row['balanced_accuracy']:.1f}", row["errors"], change]
            for row, accuracy, change in zip(self.rows(), self.accuracy, changes, strict=True)
        ]
        heads = ["labels", "accuracy, %", "mean over\nclasses, %", "errors", "change, points"]
        classes = [
            [row["class"], row["images"], *([row["errors_before"]] if self.changes else []), row["errors"]]
            for row in self.class_rows()
        ]
        class_heads = ["class", "held-out\nimages", *(f"errors at\n{n:,} labels" for n in self.labelled[-2:])]
        said = "\n".join(filter(None, (self.sentence, self.clean_sentence)))
        text = "\n\n".join((_table(rounds, heads), said, _table(classes[:LISTED], class_heads)))
        rest = classes[LISTED:]
        return f"{text}\n{len(rest)} other classes: {sum(row[-1] for row in rest):,} errors" if rest else text


def _in_words(change: Estimate, higher: str, lower: str, unseen: str) -> str:
    """ "raised accuracy by 4.1 points (2.0 to 6.2)"; a change whose interval includes 0 as "+0.3 ± 1.1 points"."""
    if change.low > 0:
        return f"{higher} {change.value:.1f} points ({change.low:.1f} to {change.high:.1f})"
    if change.high < 0:
        return f"{lower} {-change.value:.1f} points ({-change.high:.1f} to {-change.low:.1f})"
    return f"{unseen} {change.value:+.1f} ± {change.margin:.1f} points"


def _table(rows: list[list[object]], heads: list[str]) -> str:
    align = ("left", *["right"] * (len(heads) - 1))
    return tabulate(rows, heads, "simple", disable_numparse=True, colalign=align)


def progress_report(
    labelled: Sequence[int],
    predictions: Sequence[Classes],
    labels: Classes,
    classes: Sequence[str] | None = None,
    clean: Classes | None = None,
) -> Progress:
    """What the labels of each round brought, and whether more of them are likely to help.

    Args:
        labelled: number of labels after each of r rounds, ascending.
        predictions: of each round's model, the predicted classes of the same t held-out images (t,), as numbers or
            names. Held-out images are distributed as the data that the model has to work on; neither a model nor a
            query has used them.
        labels: their true classes (t,).
        classes: names of the classes; if None, classes are numbers, up to the largest one that occurs.
        clean: predictions (t,) of the model trained on the clean images alone.
    Raises:
        UserError: lengths that differ, no image, labels that do not ascend, or values that are no classes.
    """
    # Check
    try:
        labelled = tuple(map(operator.index, labelled))
    except TypeError:
        raise UserError("labelled has to be the number of labels after each round, as [40, 80, 120]") from None
    predictions = list(predictions)
    if not labelled or len(labelled) != len(predictions):
        raise UserError(
            f"labelled has {len(labelled)} values, predictions are of {len(predictions)} rounds: give as many"
        )
    if labelled[0] < 0 or list(labelled) != sorted(labelled):
        raise UserError(f"labelled has to ascend, as [40, 80, 120], not {list(labelled)}: count all labels so far")
    truth, names = _checked(labels, classes, "labels")
    whose = [*(f"predictions at {n} labels" for n in labelled), "predictions of clean"]
    given = predictions if clean is None else [*predictions, clean]
    predicted = [_checked(each, names, what, truth)[0] for each, what in zip(given, whose, strict=False)]
    names = names or tuple(map(str, range(1 + max(int(each.max()) for each in (truth, *predicted)))))

    # Compute
    right = [each == truth for each in predicted]
    right_of_clean = None if clean is None else right.pop()
    images = torch.bincount(truth, minlength=len(names))
    errors = [torch.bincount(truth[~each], minlength=len(names)) for each in right]
    present = images > 0
    recent = min(RECENT, len(right) - 1)
    return Progress(
        labelled=labelled,
        classes=names,
        images=tuple(images.tolist()),
        errors=tuple(tuple(each.tolist()) for each in errors),
        accuracy=tuple(wilson(int(each.sum()), len(truth)) for each in right),
        balanced_accuracy=tuple(100 * float((1 - each / images)[present].mean()) for each in errors),
        changes=tuple(_change(*pair) for pair in itertools.pairwise(right)),
        recent_change=_change(right[-1 - recent], right[-1]) if recent else None,
        recent_rounds=recent,
        clean=None if clean is None else wilson(int(right_of_clean.sum()), len(truth)),
        ahead_of_clean=None if clean is None else _change(right_of_clean, right[-1]),
    )


def _change(before: Tensor, after: Tensor) -> Estimate:
    """From whether images (t,) were classified correctly before to whether they are after, points."""
    return paired_change(int((after & ~before).sum()), int((before & ~after).sum()), len(after))


def _checked(
    given: object, names: tuple[str, ...] | None, what: str, truth: Tensor | None = None
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Classes (t,) int64 on the CPU, of as many images as `truth`, and their names. Raises UserError."""
    try:
        values, found = as_labels(given, names, unknown=True)
    except UserError as problem:
        raise UserError(f"{what}: {problem}") from None
    values = values.cpu()
    if not len(values):
        raise UserError(f"{what}: there is no held-out image: give at least one")
    if truth is not None and len(values) != len(truth):
        raise UserError(f"{what} are {len(values)}, for {len(truth)} held-out images: give one for each")
    if truth is not None and found != names:
        raise UserError(f"{what} are names, labels are numbers: give classes=[...], the name of class 0, 1, ...")
    if (values < 0).any():
        raise UserError(f"{what}: image {int(values.argmin())} has no class: leave it out of labels and predictions")
    return values, found
