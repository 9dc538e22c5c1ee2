"""torchvision's residual networks with taps and MC-dropout (docs/method.md, section 3; He et al. 2016)."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from alfk.networks.dropout import MCDropout


class TappedResNet(ResNet):
    """(B, 3, H, W) images -> (logits (B, classes), taps).

    The taps, one scale each: the outputs of layer1, layer2 and layer3, maps of 64, 128 and 256 channels, and the pooled
    output of layer4, (B, 512); with Bottleneck blocks four times as many channels.

    MC-dropout with probability 0.25 follows every ReLU of every block. Weights and their names are torchvision's.
    """

    head = "fc"  # the last linear layer, which is new when AL starts from a rotation model

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: list[int], classes: int):
        super().__init__(block, layers, num_classes=classes)
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                module.relu = nn.Sequential(module.relu, MCDropout(0.25))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.after_dropout(self.before_dropout(images))

    def before_dropout(self, images: Tensor) -> Tensor:
        """The stem's output, which does not depend on dropout masks."""
        return self.maxpool(self.relu(self.bn1(self.conv1(images))))

    def after_dropout(self, stem: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The rest of the network, with new dropout masks in each call."""
        x1 = self.layer1(stem)
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        pooled = self.avgpool(self.layer4(x3)).flatten(1)
        return self.fc(pooled), [x1, x2, x3, pooled]
