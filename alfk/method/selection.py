"""The result of an acquisition: the chosen pool images, and for each of them why it was chosen."""

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Selection:
    """The chosen pool images in the order they were taken. All tensors are (n,), on the CPU.

    Attributes:
        indices: int64, positions in the pool.
        misclassified: M, the number of misclassified validation images (None for a method that does not use it).
        centres: number of centres, min(n, M) (matching methods).
        at_random: how many of the indices were drawn at random where the method had no other choice.
        similarity: float32, similarity to the misclassified validation image that the chosen image matches, from -1 to
            1: R divided by its largest possible value, a mean correlation (matching methods); the cosine (facility
            location).
        matches: int64, position of that validation image in the validation set.
        error_prediction: int64, the class that the model predicts for that validation image.
        rank: int64, 1 if the chosen image was that validation image's most similar available one, 2 for the next, ...
        prediction: int64, the model's prediction for the chosen image (matching methods).
        pseudo_label: int64, the label of its Fisher score (methods with Fisher scores).
        stands_for: int64, of how many misclassified validation images it is the most similar image of the query
            (facility location).
        stands_for_label, stands_for_prediction: int64, their most frequent pair of true and predicted class, -1 if
            there are none.
        score: larger values are chosen first (uncertainty, scores of the softmax, distances, gains).
    """

    indices: Tensor
    misclassified: int | None = None
    centres: int | None = None
    at_random: int = 0
    similarity: Tensor | None = None
    matches: Tensor | None = None
    error_prediction: Tensor | None = None
    rank: Tensor | None = None
    prediction: Tensor | None = None
    pseudo_label: Tensor | None = None
    stands_for: Tensor | None = None
    stands_for_label: Tensor | None = None
    stands_for_prediction: Tensor | None = None
    score: Tensor | None = None

    @property
    def reasons(self) -> dict[str, Tensor]:
        """The attributes with a value for each chosen image, by name, without `indices`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: v for name, v in values.items() if isinstance(v, Tensor) and name != "indices"}


def top_scoring(scores: Tensor, available: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """The n available images with the highest scores (N,), best first, ties in random order: (n,) int64."""
    candidates = available.cpu().nonzero().flatten()
    candidates = candidates[torch.randperm(len(candidates), generator=generator)]
    return candidates[scores[candidates].argsort(descending=True, stable=True)[:n]]
