"""A vision transformer with learned positions, as a user would write it."""

import flax.linen as nn
import jax.numpy as jnp

PATCH, WIDTH = 4, 16


class Block(nn.Module):
    """Attention and a perceptron, each after a LayerNorm."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))


class ViT(nn.Module):
    """Encoder and decoder over patches; a learned token is read out."""

    options: object
    shapes: object

    def setup(self):
        height, width, channels = self.shapes.image_shape
        self.rows, self.columns = height // PATCH, width // PATCH
        self.pixels = channels * self.shapes.outputs
        normal = nn.initializers.normal(0.02)
        self.embed, self.block = nn.Dense(WIDTH, use_bias=False), Block()
        self.token = self.param("token", normal, (1, 1, WIDTH))
        self.positions = self.param("positions", normal, (1, self.rows * self.columns + 1, WIDTH))
        self.place = nn.Embed(self.rows * self.columns, WIDTH)
        self.to_heads = {name: nn.Dense(size) for name, size in self.shapes.heads.items()}
        self.to_patches = nn.Dense(PATCH * PATCH * self.pixels)
        self.from_z = nn.DenseGeneral((1, WIDTH))

    def encode(self, images, train):
        shape = (len(images), self.rows, PATCH, self.columns, PATCH, -1)
        patches = images.reshape(shape).swapaxes(2, 3).reshape(len(images), self.rows * self.columns, -1)
        tokens = jnp.broadcast_to(self.token, (len(images), 1, WIDTH))
        x = jnp.concatenate([tokens, self.embed(patches)], 1)
        x = self.block(x + jnp.broadcast_to(self.positions, x.shape))
        return {name: head(x[:, 0]) for name, head in self.to_heads.items()}

    def decode(self, z, train):
        places = self.place(jnp.arange(self.rows * self.columns))
        x = nn.gelu(self.from_z(z) + jnp.broadcast_to(places, (len(z), *places.shape)))
        patches = self.to_patches(x).reshape(len(z), self.rows, self.columns, PATCH, PATCH, self.pixels)
        return patches.swapaxes(2, 3).reshape(len(z), self.rows * PATCH, self.columns * PATCH, self.pixels)
