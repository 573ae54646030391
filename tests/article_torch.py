"""The article's network as a PyTorch user writes it: its names and shapes, nothing of ours."""

# pyright: reportMissingImports=false

import torch
from torch import nn
from torch.nn import functional


class ArticleVAE(nn.Module):
    """Encoder and decoder in one class; every layer by the article's name."""

    def __init__(self, latent=20):
        super().__init__()
        self.conv1, self.BN1 = nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8)
        self.conv2, self.BN2 = nn.Conv2d(8, 16, 4, 2, 1), nn.BatchNorm2d(16)
        self.conv3, self.BN3 = nn.Conv2d(16, 32, 4, 2, 1), nn.BatchNorm2d(32)
        self.conv4, self.BN4 = nn.Conv2d(32, 64, 4, 2, 0), nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(64, 128)
        self.fc_mu, self.fc_log_var = nn.Linear(128, latent), nn.Linear(128, latent)
        self.fc2 = nn.Linear(latent, 64)
        self.dec1, self.deb1 = nn.ConvTranspose2d(64, 64, 4, 2, 0), nn.BatchNorm2d(64)
        self.dec2, self.deb2 = nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32)
        self.dec3, self.deb3 = nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.BatchNorm2d(16)
        self.dec4 = nn.ConvTranspose2d(16, 1, 4, 2, 1)
        self.drop = nn.Dropout(0.2)

    def encode(self, x):
        for conv, norm in (
            (self.conv1, self.BN1),
            (self.conv2, self.BN2),
            (self.conv3, self.BN3),
            (self.conv4, self.BN4),
        ):
            x = functional.leaky_relu(norm(conv(x)))
        x = self.fc1(x.flatten(1))
        return tuple(self.drop(functional.leaky_relu(head(x))) for head in (self.fc_mu, self.fc_log_var))

    def decode(self, z):
        x = self.drop(functional.leaky_relu(self.fc2(z))).view(-1, 64, 1, 1)
        for conv, norm in ((self.dec1, self.deb1), (self.dec2, self.deb2), (self.dec3, self.deb3)):
            x = functional.leaky_relu(norm(conv(x)))
        return torch.sigmoid(self.dec4(x))

    def forward(self, x):
        mu, log_var = self.encode(x)
        z = mu + torch.randn_like(mu) * torch.exp(log_var / 2)
        return self.decode(z), mu, log_var


def terms(reconstruction, mu, log_var, x):
    """Binary cross-entropy and KL per image, as the article has them."""
    bce = functional.binary_cross_entropy(reconstruction, x, reduction="none").sum((1, 2, 3))
    return bce, -0.5 * (1 + log_var - mu.pow(2) - log_var.exp()).sum(1)
