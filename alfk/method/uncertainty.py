"""MC-dropout uncertainty (paper, Section 5, after Gal et al. 2017): from p_k, the class probabilities of sample k of K.

    varR     1 - (how often the most frequent arg max occurs) / K
    entropy  H[mean_k p_k]                       in bits
    BALD     H[mean_k p_k] - mean_k H[p_k]       in bits
    std      mean over classes of std_k p_k

Only sums over the samples are stored, so that memory does not grow with K.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.networks.modes import computing, dropout_mode
from alfk.networks.passes import add_passes, require_finite
from alfk.support import distributed
from alfk.support.errors import UserError
from alfk.support.seeding import draw_seed, seeded_globally

ROUNDING = 1e-6  # largest difference of equal samples, relative to the largest logit


class Samples:
    """Sums over samples of the class probabilities of B images.

    Args:
        images: B.
        classes: C.
    """

    def __init__(self, images: int, classes: int, device: torch.device | str = "cpu"):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self.votes, self.sum, self.square_sum = (zeros(images, classes) for _ in range(3))
        self.entropy_sum = zeros(images)

    def add(self, logits: Tensor) -> None:
        """Add a sample: (B, C) logits of one stochastic forward pass."""
        p = logits.double().softmax(1)
        self.count += 1
        self.votes.scatter_add_(1, logits.argmax(1, keepdim=True), self.votes.new_ones(len(p), 1))
        self.sum += p
        self.square_sum += p * p
        self.entropy_sum += entropy_bits(p)

    def variation_ratio(self) -> Tensor:
        """(B,): 1 - the share of samples whose arg max is the most frequent one."""
        return 1 - self.votes.max(1).values / self.count

    def predictive_entropy(self) -> Tensor:
        """(B,): H(mean p), in bits."""
        return entropy_bits(self.sum / self.count)

    def mutual_information(self) -> Tensor:
        """(B,): BALD, H(mean p) - mean H(p), in bits."""
        return self.predictive_entropy() - self.entropy_sum / self.count

    def mean_deviation(self) -> Tensor:
        """(B,): the standard deviation (divisor K) of a class's probability over samples, mean over classes."""
        mean = self.sum / self.count
        return (self.square_sum / self.count - mean * mean).clamp(min=0).sqrt().mean(1)


MEASURES: dict[str, Callable[[Samples], Tensor]] = {
    "varR": Samples.variation_ratio,
    "entropy": Samples.predictive_entropy,
    "BALD": Samples.mutual_information,
    "std": Samples.mean_deviation,
}


def entropy_bits(p: Tensor) -> Tensor:
    """Entropy over the last dimension, in bits; 0 log 0 = 0."""
    return torch.special.entr(p).sum(-1) / torch.log(torch.tensor(2.0, dtype=p.dtype))


def uncertainty(
    measure: str,
    models: Sequence[nn.Module],
    split: Split,
    samples: int,
    generator: torch.Generator,
    batch_size: int,
    name: str = "the split",
) -> Tensor:
    """Uncertainty of every image of `split` by an ensemble of dropout networks. Processes share the batches.

    Args:
        measure: a key of MEASURES.
        models: E networks that keep the contract (`alfk.networks.contract`), with dropout layers, or with
            `before_dropout` and `after_dropout` (see `sampler`).
        samples: K in total over the ensemble; a multiple of E.
        generator: source of the dropout masks.
        name: of the split, for messages.
    Returns:
        (N,) float64 on the split's device; larger values are less certain.
    Raises:
        ValueError: K is not a positive multiple of E.
        UserError: the samples of the first batch are equal, there is one sample for a measure of how samples differ, or
            a logit is not finite.
    """
    per_model, remainder = divmod(samples, len(models))
    if remainder or not per_model:
        raise ValueError(f"{samples} samples cannot be shared by {len(models)} models")
    if samples == 1 and measure != "entropy":
        raise UserError(f"{measure} measures how samples differ, of which there is one: take more samples")
    # One seed per batch, so that its masks do not depend on the number of processes.
    seeds = [draw_seed(generator) for _ in range(0, len(split), batch_size)]

    def score(images: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        sums = first = None
        batch = int(positions[0]) // batch_size
        differ = batch > 0 or samples == 1  # compared in the first batch only
        with seeded_globally(seeds[batch], split.device):
            for model in models:
                sample = sampler(model, images)
                add_passes(forward=per_model * len(images))
                for _ in range(per_model):
                    logits = sample()
                    sums = sums or Samples(*logits.shape, device=split.device)
                    sums.add(logits)
                    first = logits if first is None else first
                    differ = differ or not are_equal(logits, first)
        return MEASURES[measure](sums), sums.sum.isfinite().all(1, keepdim=True), torch.tensor(differ)

    scores = []
    with computing(), torch.inference_mode(), dropout_mode(models):
        for positions, (found, finite, differ) in distributed.map_batches(score, split, batch_size):
            require_finite(finite, ("logits",), positions, models, split, name)
            if not differ:
                raise equal_samples(samples)
            scores.append(found)
    return torch.cat(scores)


def equal_samples(samples: int) -> UserError:
    """The error about a network whose samples do not differ."""
    return UserError(
        f"the {samples} dropout samples are equal, since no dropout is active: use layers nn.Dropout or "
        "alfk.networks.dropout.MCDropout, which are switched on, not F.dropout(training=self.training), which is not"
    )


def are_equal(logits: Tensor, others: Tensor) -> bool:
    """Whether two samples of the logits differ by no more than rounding."""
    return bool((logits - others).abs().max() <= ROUNDING * others.abs().max())


def sampler(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """A function that returns one stochastic sample of the logits (B, C) per call.

    The layers before the first dropout are computed once if the network separates them: `before_dropout(images)`
    returns the hidden state, and `after_dropout(hidden)` maps it to (logits, taps).
    """
    if not hasattr(model, "before_dropout"):
        return lambda: model(images)[0]
    hidden = model.before_dropout(images)
    return lambda: model.after_dropout(hidden)[0]
