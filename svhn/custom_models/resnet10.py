"""ResNet-10: one basic block in each of the four layers (docs/method.md, section 3)."""

from torchvision.models.resnet import BasicBlock

from alfk.networks.resnet import TappedResNet


class ResNet10(TappedResNet):
    """3x32x32 images -> (logits, taps); on images of that size layer1 to layer4 are maps of 8, 4, 2 and 1 pixels."""

    def __init__(self, classes: int = 10):
        super().__init__(BasicBlock, [1, 1, 1, 1], classes)
