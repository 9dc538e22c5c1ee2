"""VAAL's networks (Sinha et al. 2019, Section 3; docs/method.md, section 10): VAE, discriminator, task model."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alfk.experiment.config import Experiment
from alfk.networks.weights import is_in_layers, linear_layers, uniform_fan_in
from alfk.support.errors import UserError
from vaal.config import Recipe

SIZE = 32  # side of the VAE's images in pixels
WIDTHS = (128, 256, 512, 1024)  # channels of the encoder's layers, before the division by s
DISCRIMINATOR_WIDTH = 512  # before the division by s


class VAE(nn.Module):
    """The variational autoencoder: images (B, channels, 32, 32) <-> codes (B, latent_dim).

    Encoder: four 4x4 convolutions of stride 2, each with batch norm and ReLU, to maps of 2x2; two linear layers to mean
    and log-variance. Decoder: a linear layer to maps of 4x4, three 4x4 transposed convolutions of stride 2, each with
    batch norm and ReLU, and a 1x1 transposed convolution to the image's channels.
    """

    def __init__(self, channels: int, divisor: int, latent_dim: int):
        super().__init__()
        widths = [width // divisor for width in WIDTHS]
        down = zip([channels, *widths[:-1]], widths, strict=True)
        up = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.bottom = (widths[-1], 4, 4)
        encoder = [layer for pair in down for layer in _block(nn.Conv2d, *pair)]
        decoder = [layer for pair in up for layer in _block(nn.ConvTranspose2d, *pair)]
        self.encoder = nn.Sequential(*encoder, nn.Flatten())
        flat = widths[-1] * 2 * 2
        self.mu, self.logvar = nn.Linear(flat, latent_dim), nn.Linear(flat, latent_dim)
        self.widen = nn.Linear(latent_dim, widths[-1] * 4 * 4)
        self.decoder = nn.Sequential(*decoder, nn.ConvTranspose2d(widths[0], channels, 1))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the codes, (B, latent_dim) each."""
        features = self.encoder(images)
        return self.mu(features), self.logvar(features)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction (B, channels, 32, 32), mean and log-variance of the codes.

        Args:
            noise: (B, latent_dim) standard normal noise of the reparameterisation: code = mean + std * noise.
        """
        mu, logvar = self.encode(images)
        code = mu + noise * (0.5 * logvar).exp()
        return self.decoder(self.widen(code).unflatten(1, self.bottom)), mu, logvar


def _block(convolution: type[nn.Module], inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A convolution that halves the side of its maps, or a transposed one that doubles it; batch norm; ReLU."""
    return convolution(inputs, outputs, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class Discriminator(nn.Module):
    """Codes (B, latent_dim) -> logits (B,) of "this image is labelled": five linear layers with ReLU between them.

    The final sigmoid is part of the losses, for numerical stability. Acquisition needs only the order of the images,
    which it does not change.
    """

    def __init__(self, divisor: int, latent_dim: int):
        super().__init__()
        width = DISCRIMINATOR_WIDTH // divisor
        hidden = [
            layer
            for inputs in (latent_dim, width, width, width)
            for layer in (nn.Linear(inputs, width), nn.ReLU(inplace=True))
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 1))

    def forward(self, codes: Tensor) -> Tensor:
        return self.layers(codes).squeeze(1)


def fit_to_vae(images: Tensor) -> Tensor:
    """Images (B, C, H, W) of any size -> (B, C, 32, 32), bilinear."""
    if images.shape[-2:] == (SIZE, SIZE):
        return images
    return F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)


def initialise_vae(vae: VAE, generator: torch.Generator) -> None:
    """Kaiming-normal weights and zero biases for convolutions and the decoder's linear layer, PyTorch's defaults for
    the transposed convolutions and the linear layers of mean and log-variance (docs/method.md, section 10).
    """
    uniform_fan_in(vae, generator)
    _kaiming_normal((*vae.encoder.modules(), vae.widen), generator)


def initialise_discriminator(discriminator: Discriminator, generator: torch.Generator) -> None:
    """Kaiming-normal weights and zero biases for all linear layers."""
    _kaiming_normal(discriminator.modules(), generator)


def _kaiming_normal(modules: Iterable[nn.Module], generator: torch.Generator) -> None:
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def task_model(
    experiment: Experiment, recipe: Recipe, pretrained: Mapping[str, Tensor], generator: torch.Generator
) -> nn.Module:
    """The data set's network: new linear layers, and the weights of a rotation model in all other layers.

    Args:
        pretrained: the state of the rotation model.
    Raises:
        UserError: `pretrained` is of another network.
    """
    make = recipe.network or experiment.network
    model = make(experiment.classes).to(memory_format=torch.channels_last)
    experiment.initialise(model, generator)
    linear = linear_layers(model)
    kept = {name: value for name, value in pretrained.items() if not is_in_layers(name, linear)}
    try:
        found = model.load_state_dict(kept, strict=False)
    except RuntimeError:  # layers of another size
        found = None
    if found is None or found.unexpected_keys or any(not is_in_layers(name, linear) for name in found.missing_keys):
        raise UserError(f"the rotation model of {experiment.name} is of another network: make it again")
    return model
