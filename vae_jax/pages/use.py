"""How a run on the hub is used: the commands that its card shows to the reader."""

from vae_jax.config import Config
from vae_jax.runs.hub import PREFIX
from vae_jax.spec import NOT_IMAGE


def use_on_hub(address: str, config: Config, own_code: bool, generative: bool) -> str:
    """How a run on the hub is used, in Markdown."""
    ending = "npz" if config.data.kind in NOT_IMAGE else "png"
    trust = " --trust-code" if own_code else ""
    lines = [
        *([f"vae-jax sample {address} --out samples.{ending}{trust}"] if generative else []),
        f"vae-jax evaluate {address}{trust}",
        f"hf download {address.removeprefix(PREFIX)} --local-dir here   # config.yaml, and all else",
        f"vae-jax train --from {address} --config here/config.yaml --out runs/mine{trust}",
    ]
    said = "`here` is then a run folder like any other."
    if own_code:
        said += " The model has code of its own, in `code/`: read it before you use `--trust-code`."
    return "\n".join(["```bash", "pip install 'vae_jax[hub]'", *lines, "```", "", said])
