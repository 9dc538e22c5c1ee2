"""torchvision's ResNet-18, 34 and 50 with taps (docs/method.md, section 3), and a smaller one."""

from torchvision.models.resnet import BasicBlock, Bottleneck

from alfk.networks.resnet import TappedResNet


def resnet10(classes: int) -> TappedResNet:
    """Half as many blocks as `resnet18`, with its taps: for small folders of small images."""
    return TappedResNet(BasicBlock, [1, 1, 1, 1], classes)


def resnet18(classes: int) -> TappedResNet:
    """3x224x224 images -> (logits, taps); the taps have 64, 128, 256 and, pooled, 512 channels."""
    return TappedResNet(BasicBlock, [2, 2, 2, 2], classes)


def resnet34(classes: int) -> TappedResNet:
    """A deeper network with the taps of `resnet18`."""
    return TappedResNet(BasicBlock, [3, 4, 6, 3], classes)


def resnet50(classes: int) -> TappedResNet:
    """Taps of four times as many channels: 256, 512, 1,024 and, pooled, 2,048."""
    return TappedResNet(Bottleneck, [3, 4, 6, 3], classes)


ARCHITECTURES = {"resnet10": resnet10, "resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}
