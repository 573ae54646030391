# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The article, end to end
#
# "VAE in no time" (Amit Nikhade, 2021) trains a small convolutional variational autoencoder on MNIST with PyTorch.
# This notebook trains the same model with `vae_jax`, with the same layers, initialisation, objective and optimiser,
# and looks at everything that the article looks at: the loss, reconstructions, samples and the latent space.
#
# In full it takes about two minutes on two free cores. The next cell has all of its settings:
#
# - `configuration` is one that comes with the package, or a YAML file. `"digits"` is the same model on scikit-learn's
#   8×8 digits, which need no download.
# - `changes` are options by their dotted names. `data.manual_dir` is a folder with MNIST's four files, here from the
#   environment; where it is None, tensorflow-datasets downloads them.

# %% tags=["parameters"]
import os

configuration = "article"
changes = {"data.manual_dir": os.environ.get("VAE_JAX_MNIST_DIR"), "train.epochs": 5}

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

import vae_jax
from vae_jax.config import to_yaml


def tiled(images, columns):
    """Pictures (n, height, width, 1) as one picture of rows; n is a multiple of columns."""
    n, height, width, _ = images.shape
    rows = np.asarray(images).reshape(n // columns, columns, height, width)
    return rows.transpose(0, 2, 1, 3).reshape(n // columns * height, columns * width)


def show(images, columns, title):
    """Draws grey pictures in [0, 1] as a grid."""
    rows = len(images) // columns
    _, axes = plt.subplots(figsize=(0.7 * columns, 0.7 * rows + 0.4), layout="constrained")
    axes.imshow(tiled(images, columns), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_axis_off()


# %% [markdown]
# ## Data
#
# Images are bytes, (n, height, width, channels), and stay so until they are used. Those of MNIST are resized from 28×28
# to 32×32, as the article does: its four convolutions of stride 2 take them to 16, 8, 4 and 1.

# %%
config = vae_jax.load_config(configuration, **changes)
data = vae_jax.load_data(config.data, report=print)
print(f"{data.name}: {len(data.train):,} images to train on, {len(data.test):,} to test on, {data.image_shape}")
show(data.test.images[:24] / 255, 12, "The first test images")

# %% [markdown]
# ## Configuration
#
# A configuration is one frozen value. It says everything that a run depends on, its seed included. The article's
# code has some peculiarities, and each is an option here: the mean and the log-variance pass through an
# activation and through dropout (`head_activation`, `head_dropout`), the hidden layer has no activation
# (`hidden_activation`), and the loss is summed over a batch, not averaged (`reduction`).

# %%
print(to_yaml(config))

# %% [markdown]
# ## Training
#
# `fit` compiles an epoch as one program and runs it. It prints nothing: `on_epoch` gets the figures of every epoch.


# %%
def say(figures, state):
    """Prints the losses of an epoch."""
    print(
        f"epoch {figures['epoch']}: train {figures['train_loss']:.2f}, test {figures['test_loss']:.2f} nats per image"
    )


trained = vae_jax.fit(config, data, on_epoch=say)

# %% [markdown]
# A trained model shows itself as a table.

# %%
trained

# %% [markdown]
# ## Curves
#
# The loss is minus the ELBO, a bound on minus the log-likelihood of an image:
#
# $$-\log p(x) \le \underbrace{-\mathrm{E}_{q(z|x)}\log p(x|z)}_\text{reconstruction}
#   + \underbrace{\mathrm{KL}(q(z|x)\,\|\,p(z))}_\text{KL}$$
#
# The reconstruction says how many nats an image costs once its code z is known. The KL says how many nats the code
# costs. In training the loss is the mean over the epoch, while the weights still change and dropout is on; on the test
# images it is measured after the epoch, without dropout. So the first epoch's test loss is far below its training loss.

# %%
history = trained.history
epochs = [figures["epoch"] for figures in history]
_, panels = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
for axes, name in zip(panels, ("loss", "reconstruction", "kl"), strict=True):
    for split in ("train", "test"):
        axes.plot(epochs, [figures[f"{split}_{name}"] for figures in history], marker="o", label=split)
    axes.legend()
    axes.set(title=name, xlabel="epoch", ylabel="nats per image", xticks=epochs)
# %% [markdown]
# ## What the numbers mean
#
# Three things make the loss harder to read than it looks.
#
# **It has a floor well above 0.** The article's targets are grey levels, and the likelihood is a Bernoulli's,
# whose cross-entropy with a grey level t is never below the entropy of t. The floor is the reconstruction of a
# model that gives every image back exactly. Distances between models count, ratios do not; and the loss is not
# comparable with likelihoods of binarised MNIST, which most papers state.

# %%
levels = np.clip(data.test.images / 255.0, 1e-12, 1 - 1e-12)
entropy = -(levels * np.log(levels) + (1 - levels) * np.log(1 - levels))
floor = entropy.sum((1, 2, 3)).mean()
last = history[-1]
print(f"reconstruction {last['test_reconstruction']:.2f}, of which {floor:.2f} is the floor")
print(f"KL             {last['test_kl']:.2f}")
print(f"loss           {last['test_loss']:.2f} nats per test image")

# %% [markdown]
# **The article prints another figure**: the mean over the batches of a batch's *sum*. It depends on the batch size, and
# a smaller last batch counts as much as the others. It is recorded beside ours, so that a run can be laid beside
# the article's output; for everything else use the figure per image.

# %%
batch = config.train.batch_size
batches = -(-len(data.test) // batch)
print(f"the article's figure: train {last['article_train_loss']:,.2f}, test {last['article_test_loss']:,.2f}")
size = len(data.test) / batches
print(f"our test loss, times {size:.2f} images a batch: {last['test_loss'] * size:,.2f}")

# %% [markdown]
# **One run is one draw.** Twenty seeds of the article on MNIST end at 194.8 ± 0.9 nats after five epochs, ten of
# PyTorch's at 194.6 ± 0.8 (`docs/results.md`). A change that costs less than a nat does not show in one run.
#
# ## Reconstructions
#
# `use` gives the model as functions of images and of z. Each test image stands above its reconstruction, which is
# decoded from the mean of q(z|x). They are blurred: the code says about
# twelve nats of an image.

# %%
model = vae_jax.use(trained)
images = data.test.images[:24] / 255
again = np.asarray(model.reconstruct(data.test.images[:24]))
show(
    np.concatenate([images[:12], again[:12], images[12:], again[12:]]),
    12,
    "Test images, each above its reconstruction",
)

# %% [markdown]
# ## Samples
#
# A sample is decoded from z ~ p(z), a standard normal. A key makes it repeatable.

# %%
samples = np.asarray(model.sample(jax.random.key(0), 48))
show(samples, 12, "Samples")

# %% [markdown]
# ## The latent space
#
# An image's place is the mean of its q(z|x). The left panel shows the two directions in which these means spread most.
# The labels were not used in training. The right panel shows how many nats each dimension of z carries, largest first:
# a dimension without any has collapsed to the prior, and the decoder ignores it.

# %%
heads = model.encode(data.test.images)
mu, log_var = np.asarray(heads["mu"]), np.asarray(heads["log_var"])
kl = 0.5 * (mu**2 + np.exp(log_var) - 1 - log_var)  # (images, latent): closed form of two Gaussians
by_dimension = np.sort(kl.mean(0))[::-1]
plane = PCA(2).fit_transform(mu)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", width_ratios=(3, 2))
places = left.scatter(*plane[:5000].T, c=data.test.labels[:5000], cmap="tab10", vmin=-0.5, vmax=9.5, s=4)
figure.colorbar(places, ax=left, ticks=range(10), label="label")
left.set(title="Means of the test images", xlabel="first component", ylabel="second component")
right.bar(np.arange(len(by_dimension)) + 1, by_dimension)
right.set(title="KL by dimension", xlabel="dimension, largest first", ylabel="nats per image")
used = (by_dimension > 0.01).sum()
print(f"{used} of {len(by_dimension)} dimensions carry more than 0.01 nats; together {kl.sum(1).mean():.2f}")

# %% [markdown]
# The sum is the KL of the table above, computed here a second time by its closed form.
#
# Between the codes of two images lies a line of z. What is decoded from it changes step by step, and in the middle
# stands something that is neither.

# %%
first, second = (int(np.flatnonzero(data.test.labels == label)[0]) for label in (1, 0))
steps = np.linspace(0, 1, 12)[:, None]
walk = np.asarray(model.decode((1 - steps) * mu[first] + steps * mu[second]))
show(walk, 12, "From a 1 to a 0")

# %% [markdown]
# ## Further
#
# - `vae_jax.train_run(config, data, "runs/article")` does the same into a folder with checkpoints, figures and
#   pictures, which `vae-jax evaluate`, `explore` and `report` read.
# - `own_objective.py` changes what is minimised; `compare.py` trains the same model in PyTorch.
