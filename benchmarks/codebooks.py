"""Vector quantisation beside pythae's: the same images, networks, batches, optimiser and epochs, on one core each.

    python -m venv pythae && pythae/bin/pip install torch==2.13.0 pythae     (Python 3.11)
    python benchmarks/codebooks.py --pythae pythae/bin/python --mnist DIR

10,000 training images of MNIST at 28x28 and the first 2,000 test images, convolutions 1-32-64 (4x4, stride 2, ReLU), a
map of 7x7 vectors of 16 numbers, 512 codes, batches of 128, Adam at 1e-3, 3 epochs. Prints the squared error a test
image, the codes that the test images use, and CPU seconds: of compiling, which pythae does not, and of training.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

TRAIN, TEST, EPOCHS, BATCH, CODES, LATENT = 10_000, 2_000, 3, 128, 512, 16
FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}


def images(folder: Path, split: str, count: int) -> np.ndarray:
    """The first images of a split, uint8, (count, 28, 28)."""
    path = next(path for path in folder.glob(f"{FILES[split]}*"))
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        return np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:count]


def ours(folder: Path, options: dict[str, str]) -> dict[str, float]:
    """Trains ours."""
    from vae_jax.config import load_config
    from vae_jax.data import Dataset, Split
    from vae_jax.runs.fit import fit
    from vae_jax.runs.reading import use

    config = load_config(
        **{
            "data.image_size": 28,
            "data.channels": 1,
            "model.channels": [32, 64],
            "model.paddings": [1, 1],
            "model.activation": "relu",
            "model.batch_norm": False,
            "model.latent": LATENT,
            "posterior.name": "codebook",
            "posterior.codes": CODES,
            "posterior.decay": 0.95,
            "prior.name": "uniform",
            "likelihood.name": "gaussian",
            "likelihood.scale": 1.0,
            "train.epochs": EPOCHS,
            "train.batch_size": BATCH,
            "train.reduction": "mean",
            **options,
        }
    )
    test = images(folder, "test", TEST)[..., None]
    # An epoch ends with an evaluation, which pythae's does not: of a few images only.
    data = Dataset("mnist", Split(images(folder, "train", TRAIN)[..., None]), Split(test[:BATCH]))
    seconds = {}
    before = time.process_time()

    def on_start() -> None:
        seconds["compiling"] = time.process_time() - before

    trained = fit(config, data, on_start=on_start)
    seconds["training"] = time.process_time() - before - seconds["compiling"]
    model = use(trained)
    codes = model.encode(test)["codes"]
    return {
        "error": float(np.square(np.asarray(model.decode(codes)) - test / 255).sum((1, 2, 3)).mean()),
        "codes": float(len(np.unique(codes))),
        **seconds,
    }


def theirs(folder: Path, ema: bool) -> dict[str, float]:
    """Trains pythae's; in its interpreter."""
    import tempfile

    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VQVAE, VQVAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(), nn.Conv2d(64, LATENT, 1)
            )

        def forward(self, x: torch.Tensor) -> ModelOutput:
            return ModelOutput(embedding=self.layers(x))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(LATENT, 64, 1),
                nn.ReLU(),
                nn.ConvTranspose2d(64, 32, 4, 2, 1),
                nn.ReLU(),
                nn.ConvTranspose2d(32, 1, 4, 2, 1),
                nn.Sigmoid(),
            )

        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(z))

    config = VQVAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, num_embeddings=CODES, use_ema=ema)
    model = VQVAE(config, Encoder(), Decoder())
    x, test = (
        torch.tensor(images(folder, split, count)[:, None] / 255, dtype=torch.float32)
        for split, count in (("train", TRAIN), ("test", TEST))
    )
    with tempfile.TemporaryDirectory() as place:
        recipe = BaseTrainerConfig(
            output_dir=place,
            num_epochs=EPOCHS,
            learning_rate=1e-3,
            per_device_train_batch_size=BATCH,
            optimizer_cls="Adam",
            no_cuda=True,
        )
        trainer = BaseTrainer(model=model, train_dataset=BaseDataset(x, torch.zeros(len(x))), training_config=recipe)
        before = time.process_time()
        trainer.train()
        seconds = time.process_time() - before
    model.eval()
    with torch.no_grad():
        embedding = model.encoder(test).embedding
        codes = model.quantizer(embedding.permute(0, 2, 3, 1)).quantized_indices
        found = model(BaseDataset(test, torch.zeros(len(test)))[:])
        error = (found.recon_x.reshape(len(test), -1) - test.reshape(len(test), -1)).square().sum(1).mean()
    return {"error": float(error), "codes": float(codes.unique().numel()), "compiling": 0.0, "training": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="a folder with MNIST's four files")
    parser.add_argument("--pythae", help="an interpreter that has pythae; without one only ours runs")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="of our configuration")
    parser.add_argument("--only", choices=("ours", "theirs", "theirs_ema"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        own = dict(each.split("=", 1) for each in options.set)
        found = (
            ours(options.mnist, own) if options.only == "ours" else theirs(options.mnist, options.only.endswith("ema"))
        )
        print(json.dumps(found))
        return
    command = [sys.executable, __file__, "--mnist", str(options.mnist), *(f"--set={each}" for each in options.set)]
    contenders = {"vae_jax": [*command, "--only", "ours"]}
    if options.pythae:
        command[0] = options.pythae
        contenders |= {"pythae": [*command, "--only", "theirs"], "pythae, EMA": [*command, "--only", "theirs_ema"]}
    print(f"{'':12} {'error':>7} {'codes':>6} {'compiling':>10} {'training':>9}  CPU seconds")
    for name, arguments in contenders.items():
        core = {min(os.sched_getaffinity(0))}
        done = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda core=core: os.sched_setaffinity(0, core),
        )
        if done.returncode:
            print(f"{name}: failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        numbers = f"{found['error']:7.2f} {found['codes']:6.0f} {found['compiling']:10.1f} {found['training']:9.1f}"
        print(f"{name:12} {numbers}", flush=True)


if __name__ == "__main__":
    main()
