"""A network with its own initialisers, constant and random, and a parameter, a collection and noise of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp

SEED = 7


def from_seed(key, shape, dtype=jnp.float32):
    """The same numbers whatever the run's seed is."""
    return jax.random.uniform(jax.random.key(SEED), shape, dtype)


class Initialised(nn.Module):
    """Linear, scaled by a parameter; counts the training steps in a collection "steps"."""

    options: object
    shapes: object

    def setup(self):
        height, width, channels = self.shapes.image_shape
        self.scale = self.param("scale", nn.initializers.constant(0.5), (self.shapes.latent,))
        self.drawn = self.param("drawn", nn.initializers.normal(0.02), (self.shapes.latent,))
        self.to_heads = {
            name: nn.Dense(size, kernel_init=nn.initializers.zeros, bias_init=nn.initializers.constant(0.25))
            for name, size in self.shapes.heads.items()
        }
        self.to_pixels = nn.Dense(height * width * channels * self.shapes.outputs, kernel_init=from_seed)
        self.count = self.variable("steps", "count", jnp.zeros, (), jnp.int32)

    def encode(self, images, train):
        if train and not self.is_initializing():
            self.count.value += 1
        return {name: head(images.reshape(len(images), -1)) for name, head in self.to_heads.items()}

    def decode(self, z, train):
        if train:  # noise from a stream of its own
            z = z + 0.01 * jax.random.normal(self.make_rng("jitter"), z.shape)
        z = z * jnp.broadcast_to(self.scale + self.drawn, z.shape)
        return self.to_pixels(z).reshape(len(z), *self.shapes.image_shape[:2], -1)
