"""Proposes layers of a network for `alfk.tapped`."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence

import torch
from tabulate import tabulate
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.networks.contract import forward_errors
from alfk.networks.layout import Layouts, batch_is_second, first_tensor
from alfk.networks.modes import computing, evaluation_mode, prepare
from alfk.networks.taps import Tapped, find_logits
from alfk.support.errors import UserError


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layer that can be tapped.

    Attributes:
        name: as in `named_modules()`.
        kind: the class of the layer.
        shape: of its output.
        channels_last: whether the channels are the last dimension; None if `tapped` has to be given it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    channels_last: bool | None

    @property
    def sides(self) -> tuple[int, ...]:
        """The dimensions that are averaged."""
        return self.shape[1:-1] if self.channels_last else self.shape[2:]

    @property
    def depth(self) -> int:
        return self.name.count(".")


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Layers that can be tapped, in the order in which they run, and two proposals for `tapped`.

    Attributes:
        last: the last stage: a good start.
        last_two: the last two stages: a longer descriptor, of coarse and finer features.
    """

    candidates: list[Candidate]
    last: list[str]
    last_two: list[str]

    def __str__(self) -> str:
        marks = dict.fromkeys(self.last_two, "last_two") | dict.fromkeys(self.last, "last, last_two")
        layouts = {None: "channels_last=?", True: "channels last", False: ""}
        rows = [(c.name, c.kind, c.shape, layouts[c.channels_last], marks.get(c.name, "")) for c in self.candidates]
        table = tabulate(rows, ("layer", "type", "output", "", "proposed"), disable_numparse=True)
        return "\n".join(line.rstrip() for line in table.splitlines())


def suggest_taps(model: nn.Module, example: Tensor | Split, channels_last: bool | None = None) -> Suggestion:
    """Which layers of a model to tap, from one forward pass in evaluation mode. `print` the result for a table.

    Candidates are the outermost names of all distinct outputs (B, ...), without the logits. The proposed stages are, of
    a network of maps, the outputs at the smallest resolutions; of a network of tokens the last blocks of its largest
    row of equal blocks; else the last hidden layers.

    Args:
        model: returns logits (B, C), as for `tapped`.
        example: some images (B, C, H, W), normalised or not, or a Split.
        channels_last: as for `tapped`.
    Raises:
        UserError: no layer can be tapped, or the model is scripted.
    """
    model = prepare(model)
    if isinstance(model, Tapped):
        model = model.model
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("the layers of a scripted model cannot be read: pass the module before torch.jit.script")
    with computing(), torch.no_grad(), evaluation_mode(model):
        images = next(example.batches(2))[0] if isinstance(example, Split) else example
        device = next((parameter.device for parameter in model.parameters()), images.device)
        images = images.to(device, torch.float32)
        outputs, logits = _outputs(model, images, channels_last)
    outputs = [output for output in outputs if not _is_logits(output.tensor, logits)]
    outermost = _outermost(outputs)
    stages = _stages(outputs, outermost)
    if not stages:
        raise UserError("no layer of the model can be tapped: none inside it returns a float tensor (B, channels, ...)")
    # A block's own name says more than that of the container that returns the block's output.
    tensors = {id(stage.tensor): stage for stage in stages[-2:]}
    candidates = [tensors.get(id(output.tensor), output).candidate for output in outermost]
    names = [stage.candidate.name for stage in stages[-2:]]
    return Suggestion(candidates, names[-1:], names)


@dataclasses.dataclass(frozen=True, eq=False)
class _Output:
    candidate: Candidate
    module: nn.Module
    tensor: Tensor


def _outputs(model: nn.Module, images: Tensor, channels_last: bool | None) -> tuple[list[_Output], Tensor]:
    """The usable outputs of all layers that run once, in order of execution, and the logits."""
    layouts, found, calls = Layouts(images, channels_last), [], Counter()

    def read(name: str, module: nn.Module, output: object) -> None:
        calls[name] += 1
        tensor = first_tensor(output)
        usable = tensor is not None and tensor.is_floating_point() and 2 <= tensor.ndim <= 5
        if not usable or len(tensor) != len(images) or (tensor.ndim == 3 and batch_is_second(module)):
            return
        last = layouts.channels_last(module, tensor)
        if tensor.shape[-1 if last else 1] >= 2:
            candidate = Candidate(name, type(module).__name__, tuple(tensor.shape), last)
            found.append(_Output(candidate, module, tensor))

    with layouts.following(model), contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                hook = lambda module, _, output, name=name: read(name, module, output)  # noqa: E731
                hooks.callback(module.register_forward_hook(hook).remove)
        with forward_errors(images.shape):
            output = model(images)
    return [one for one in found if calls[one.candidate.name] == 1], find_logits(output, len(images))


def _is_logits(tensor: Tensor, logits: Tensor) -> bool:
    """Whether a tensor is the logits, or a reshaped view of them."""
    return tensor is logits or (tensor.data_ptr() == logits.data_ptr() and tensor.numel() == logits.numel())


_PASSED_ON = (nn.Dropout, nn.Identity)  # return their input in evaluation mode
_RESHAPED = ("Flatten", "Unflatten", "Permute", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d")


def _outermost(outputs: Sequence[_Output]) -> list[_Output]:
    """One output for each tensor: the outermost layer, of equals the last, as an in-place activation."""
    best: dict[int, _Output] = {}
    for output in outputs:
        other = best.get(id(output.tensor))
        passed_on = other is not None and isinstance(output.module, _PASSED_ON)
        if other is None or (output.candidate.depth <= other.candidate.depth and not passed_on):
            best[id(output.tensor)] = output
    return [output for output in outputs if best[id(output.tensor)] is output]


def _stages(outputs: Sequence[_Output], outermost: Sequence[_Output]) -> list[_Output]:
    """The outputs that end a network's stages, in order of execution; see `suggest_taps`."""
    plain = [o for o in outermost if o.candidate.kind not in _RESHAPED and o.candidate.channels_last is not None]
    maps = [o for o in plain if len(o.candidate.shape) > 3 and _is_map(o)]
    tokens = [o for o in plain if len(o.candidate.shape) == 3]
    if tokens and (not maps or outermost.index(tokens[-1]) > outermost.index(maps[-1])):
        inside = [o for o in outputs if len(o.candidate.shape) == 3 and o.candidate.channels_last is not None]
        return _repeated_blocks(inside) or _shallowest(tokens)
    if maps:
        sides = {o.candidate.sides: o for o in maps}  # the last at each resolution
        ends = [_shallowest([o for o in maps if o.candidate.sides == side])[-1] for side in sides]
        return sorted(ends, key=outermost.index)
    vectors = [o for o in plain if len(o.candidate.shape) == 2]
    inside = [o for o in outputs if len(o.candidate.shape) == 2 and next(o.module.children(), None) is not None]
    return _repeated_blocks(inside) or _hidden_layers(outputs, vectors)


def _is_map(output: _Output) -> bool:
    """Whether an output has more than one position, or one that convolutions, and not a global average, have left."""
    convolutions = [module for module in output.module.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    spatial = any(max(convolution.kernel_size) > 1 for convolution in convolutions)
    return max(output.candidate.sides) > 1 or spatial


def _shallowest(outputs: Sequence[_Output]) -> list[_Output]:
    """Those that are least deep in the network: stages rather than the layers inside them."""
    depth = min(output.candidate.depth for output in outputs)
    return [output for output in outputs if output.candidate.depth == depth]


def _repeated_blocks(outputs: Sequence[_Output]) -> list[_Output]:
    """The largest row of layers of one class in one container; empty without two of them."""
    rows: dict[tuple[str, str], list[_Output]] = {}
    for output in outputs:
        container = output.candidate.name.rpartition(".")[0]
        rows.setdefault((container, output.candidate.kind), []).append(output)
    # Layers inside a block are as often repeated as there are in it: of rows of equal length the outermost counts.
    row = max(rows.values(), key=lambda row: (len(row), -row[0].candidate.depth), default=[])
    return row if len(row) > 1 else []


def _hidden_layers(outputs: Sequence[_Output], vectors: Sequence[_Output]) -> list[_Output]:
    """After each linear layer the last of `vectors` before the next one, so after its norm and activation."""
    groups: list[list[_Output]] = [[]]
    for output in outputs:  # with linear layers whose output an activation changes in place
        if any(isinstance(module, nn.Linear) for module in output.module.modules()):
            groups.append([])
        if output in vectors:
            groups[-1].append(output)
    return [_shallowest(group)[-1] for group in groups if group]
