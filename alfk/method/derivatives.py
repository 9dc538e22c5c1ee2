"""Derivatives of a network's logits with respect to its taps: for a loss, for all classes at once, and twice."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

LOSS_SCALES = (2.0**14, 2.0**7, 1.0)  # tried in this order where float16 is involved; the last must be 1


class Graph:
    """The autograd graph of one forward pass, from the logits back to the taps.

    A network may compute in float16, whose small gradients become 0: the outputs are then multiplied by the first of
    LOSS_SCALES that leaves all gradients finite, and the gradients divided by it. Results are float32.

    Args:
        logits: (B, C), computed from the taps.
        taps: tensors (B, c, ...).
    """

    def __init__(self, logits: Tensor, taps: Sequence[Tensor]):
        self.logits, self.taps = logits, taps

    @functools.cached_property
    def loss_scales(self) -> tuple[float, ...]:
        return LOSS_SCALES if has_float16(self.logits) else (1.0,)

    def gradients(self, loss: Tensor, keep: bool) -> list[Tensor]:
        """d loss / d taps, in the shapes of the taps.

        Args:
            loss: a number computed from the logits.
            keep: whether the graph is needed again.
        """
        return self._scaled(loss, None, keep)

    def jacobian(self) -> list[Tensor]:
        """J^T e_c = d logits_c / d taps for every class c: tensors (C, B, c, ...). Frees the graph."""
        images, classes = self.logits.shape
        units = torch.eye(classes, dtype=self.logits.dtype, device=self.logits.device)
        units = units.unsqueeze(1).expand(classes, images, classes)
        return self._scaled(self.logits, units, is_grads_batched=True)

    def pullback(self, v: Tensor) -> list[Tensor]:
        """J^T v = d <logits, v> / d taps for v (B, C), differentiable with respect to v."""
        gradients = torch.autograd.grad(self.logits, self.taps, v.to(self.logits.dtype), create_graph=True)
        return [at_least_float32(g) for g in gradients]

    def _scaled(self, outputs: Tensor, v: Tensor | None, keep: bool = False, **options: bool) -> list[Tensor]:
        """d <outputs, v> / d taps, or d outputs / d taps if v is None."""
        for scale in self.loss_scales[:-1]:
            scaled, by = (outputs * scale, None) if v is None else (outputs, v * scale)
            gradients = torch.autograd.grad(scaled, self.taps, by, retain_graph=True, **options)
            gradients = [at_least_float32(g) / scale for g in gradients]
            if all(g.isfinite().all() for g in gradients):
                return gradients
        gradients = torch.autograd.grad(outputs, self.taps, v, retain_graph=keep, **options)
        return [at_least_float32(g) for g in gradients]


def at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def has_float16(logits: Tensor) -> bool:
    """Whether a step of the computation of `logits` resulted in float16, whose gradients vanish below 6e-8."""
    steps, seen = [logits.grad_fn], set()
    while steps:
        step = steps.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if any(output.dtype == torch.float16 for output in getattr(step, "_input_metadata", ())):
            return True
        steps += [before for before, _ in step.next_functions]
    return False
