"""A convolutional network of GroupNorm and no biases, with Flax's convolutions or with those of vae_jax.layers."""

import flax.linen as nn

from vae_jax import layers

WIDTH = 16


class GroupNormNet(nn.Module):
    """Two strided convolutions, a linear layer for each head, and the way back."""

    options: object
    shapes: object

    conv = nn.Conv
    conv_transpose = nn.ConvTranspose

    def setup(self):
        height, width, channels = self.shapes.image_shape
        self.small = height // 4, width // 4
        self.down = [self.conv(WIDTH * i, (4, 4), strides=(2, 2), use_bias=False) for i in (1, 2)]
        self.to_heads = {name: nn.Dense(size, use_bias=False) for name, size in self.shapes.heads.items()}
        self.from_z = nn.Dense(self.small[0] * self.small[1] * 2 * WIDTH, use_bias=False)
        self.up = self.conv_transpose(WIDTH, (4, 4), strides=(2, 2), use_bias=False)
        self.last = self.conv_transpose(channels * self.shapes.outputs, (4, 4), strides=(2, 2), use_bias=False)
        self.norms = [nn.GroupNorm(4), nn.GroupNorm(4), nn.GroupNorm(4)]

    def encode(self, images, train):
        x = images
        for down, norm in zip(self.down, self.norms, strict=False):
            x = nn.silu(norm(down(x)))
        x = x.reshape(len(x), -1)
        return {name: head(x) for name, head in self.to_heads.items()}

    def decode(self, z, train):
        x = self.from_z(z).reshape(-1, *self.small, 2 * WIDTH)
        return self.last(nn.silu(self.norms[2](self.up(x))))


class FastNet(GroupNormNet):
    """The same, fast inside a compiled loop on a CPU too."""

    conv = layers.Conv
    conv_transpose = layers.ConvTranspose
