"""torchvision's residual networks with taps, and with MC-dropout (METHOD: models; He et al. 2016)."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class TappedResNet(ResNet):
    """(B, 3, H, W) images -> (logits (B, classes), taps).

    The taps, one scale each: the outputs of layer1, layer2 and layer3, maps of 64, 128 and 256 channels (four times as
    many of Bottleneck blocks), and the pooled output of layer4, (B, 512).

    With `mc_dropout` a quarter of the features is dropped after both ReLUs of every block, always, also in evaluation
    mode. Weights and their names are torchvision's.
    """

    head = "fc"  # the layer that a rotation model loses

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: list[int], classes: int, mc_dropout: bool = False):
        super().__init__(block, layers, num_classes=classes)
        if mc_dropout:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    module.relu = nn.Sequential(module.relu, AlwaysDropout(0.25))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.after_dropout(self.before_dropout(images))

    def before_dropout(self, images: Tensor) -> Tensor:
        """The stem's output, which no dropout mask changes."""
        return self.maxpool(self.relu(self.bn1(self.conv1(images))))

    def after_dropout(self, stem: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The rest of the network, under new dropout masks at each call."""
        x1 = self.layer1(stem)
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        pooled = self.avgpool(self.layer4(x3)).flatten(1)
        return self.fc(pooled), [x1, x2, x3, pooled]


class AlwaysDropout(nn.Module):
    """Dropout that evaluation mode does not switch off (Gal and Ghahramani 2016)."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        return F.dropout(features, self.share, training=True)
