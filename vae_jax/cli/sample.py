"""`vae-jax sample`: draws new images, from the prior or from a density fitted to the latents."""

from itertools import product
from typing import TYPE_CHECKING, Any

from vae_jax.cli.arguments import number, whole
from vae_jax.cli.common import Verb, flag, open_run, out_option, positive, run_options, say, seed_of, trains_prior
from vae_jax.cli.progress import progress
from vae_jax.cli.run_data import load_data, say_unused
from vae_jax.errors import UserError, listed, quoted

if TYPE_CHECKING:
    from vae_jax.data.split import Split
    from vae_jax.training.state import Trained
from vae_jax.cli.pictures import ARRAYS, decoded, label_of, label_option, picture_target, sheet_of, write_pictures

SOURCES = ("prior", "gmm", "second_stage")  # of z; the last two are in vae_jax/evaluation/samplers.py


def _sample_options(parser: Any) -> None:
    run_options(parser)
    parser.add_argument("-n", type=whole, default=64, help="number of images")
    parser.add_argument("--seed", type=whole, default=0, help="the same seed gives the same pictures")
    parser.add_argument(
        "--temperature",
        default=None,
        metavar="T,…",
        help="of a prior over codes: below 1 likelier codes are drawn more often; several get a row each",
    )
    parser.add_argument(
        "--top-p",
        type=number,
        default=None,
        metavar="P",
        help="of a prior over codes: draw only the likeliest codes, whose probabilities sum up to P",
    )
    parser.add_argument(
        "--from",
        default="prior",
        metavar="SOURCE,…",
        offered=lambda: SOURCES,
        help="the source of z: prior, or a density fitted now to the training images' latents, which makes even an "
        "autoencoder generative: gmm (a mixture of 10 Gaussians) or second_stage (a VAE of z); several stand side by "
        "side",
    )
    label_option(parser, "of all pictures; by default all classes in turn")
    out_option(
        parser,
        "RUN/figures/samples_seed<SEED>.png, with --from and the label's number in its name if they are given"
        f"{ARRAYS}, of categories their probabilities",
    )


def _sample(options: Any) -> None:
    import numpy as np

    sources = _sources_of(getattr(options, "from"))
    label = label_of(options)
    temperatures, arguments = _draw_arguments(options, sources)
    named = ("" if sources == ["prior"] else f"{'_'.join(sources)}_") + ("" if label is None else f"label{label}_")
    named += f"temperature{options.temperature}_".replace(",", "_") if options.temperature else ""
    named += "" if options.top_p is None else f"top{options.top_p:g}_"
    path = picture_target(options, f"figures/samples_{named}seed{options.seed}")
    count, seed = positive(options.n, "-n"), seed_of(options)
    trained, model = open_run(options)
    import jax

    from vae_jax.keys import sampling_key

    _check_ways(options, trained)
    if "prior" in sources and model.draw is None:
        raise UserError(
            f"--from: expected gmm or second_stage for objective {trained.config.objective.name}, which has no prior "
            f"to sample from; found prior"
        )
    classes, labels, shape = trained.config.model.classes, None, trained.image_shape
    ways = len(temperatures) * len(sources)
    total, columns = count * ways, max(1, int(count**0.5)) if len(temperatures) == 1 else count
    rows = [f"temperature {temperature:g}" for temperature in temperatures if temperature is not None]
    words = {"rows": rows * (len(rows) > 1), "blocks": sources * (len(sources) > 1)}
    sheet = sheet_of(path, shape, total, columns, f"-n {count}", **words)
    if classes:
        labels = np.arange(count) % classes if label is None else np.full(count, label)
    if sources == ["prior"]:
        say_unused(options)
    images = None if sources == ["prior"] else load_data(options, trained).train
    key = jax.random.key(seed)

    def drawn(source: str, temperature: float | None) -> Any:
        if source != "prior":
            return _fitted(trained, images, source)(sampling_key(key), count)
        assert model.draw is not None
        way = arguments if temperature is None else {**arguments, "temperature": temperature}
        return model.draw(key, count, labels, **way)

    z = np.concatenate([np.asarray(drawn(*way)) for way in product(sources, temperatures)])
    labels = None if labels is None else np.tile(labels, ways)

    def inputs_of(numbers: range) -> tuple[Any, Any]:
        return z[numbers.start : numbers.stop], None if labels is None else labels[numbers.start : numbers.stop]

    if ways > 1 and sheet is None:
        order = listed(rows or sources)
        say(f"{count:,} {trained.config.data.noun}s from every one of these, in this order: {order}")
    write_pictures(path, sheet, trained, total, decoded(model, shape, total, inputs_of))


def _sources_of(text: str) -> list[str]:
    """The sources of z.

    Raises:
        UserError: if there is no such source, or one is named twice.
    """
    sources = text.split(",")
    for source in sources:
        if source not in SOURCES:
            raise UserError(f"--from: expected {', '.join(SOURCES[:-1])} or {SOURCES[-1]}; found {quoted(source)}")
    if len(set(sources)) < len(sources):
        raise UserError(f"--from: expected a source once; found {quoted(text)}")
    return sources


def _draw_arguments(options: Any, sources: list[str]) -> tuple[list[Any], dict[str, float]]:
    """The temperatures to draw at, None for the prior's own, and the prior's other arguments.

    Raises:
        UserError: if a number is out of its range, or z does not come from the prior.
    """
    for name, given in (("--temperature", options.temperature), ("--top-p", options.top_p)):
        if given is not None and sources != ["prior"]:
            raise UserError(f"{name}: expected --from prior with it; found --from {','.join(sources)}")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise UserError(f"--top-p: expected a number in (0, 1]; found {options.top_p}")
    arguments = {} if options.top_p is None else {"top_p": options.top_p}
    if options.temperature is None:
        return [None], arguments
    try:
        temperatures = [float(part) for part in options.temperature.split(",")]
    except ValueError:
        temperatures = []
    if not temperatures or not all(0 < temperature <= 100 for temperature in temperatures):
        raise UserError(
            f"--temperature: expected numbers in (0, 100] with commas between them; found {quoted(options.temperature)}"
        )
    return temperatures, arguments


def _check_ways(options: Any, trained: "Trained") -> None:
    """Refuses ways of drawing for a prior that has none, before it draws.

    Raises:
        UserError: naming the prior, and how another is trained.
    """
    from vae_jax.model.build import build

    composition, _ = build(trained.config, trained.image_shape)
    for name, given in (("temperature", options.temperature), ("top_p", options.top_p)):
        if given is None or not composition.prior or name in composition.prior.how:
            continue
        prior = trained.config.prior.name
        if composition.posterior.codes:
            found = f"{prior}, of which all codes are as likely" if prior == "uniform" else prior
            hint = f"; {trains_prior(options.run, '')} trains one"
        else:
            found, hint = f"{prior}, over real numbers", ""
        raise UserError(f"{flag(name, None)}: expected a trained prior over codes; found {found}{hint}")


def _fitted(trained: "Trained", images: "Split | None", source: str) -> Any:
    """The sampler of z, fitted with the run's seed: --seed chooses the draws, not the fit."""
    from vae_jax.evaluation import samplers
    from vae_jax.keys import make_keys
    from vae_jax.model.build import build
    from vae_jax.training.checks import labels_for

    composition, _ = build(trained.config, trained.image_shape)
    assert images is not None
    key, labels = make_keys(trained.config.seed).samplers, labels_for(trained.config, images)
    with progress(f"fitting {source}") as on_progress:
        return samplers.fit_sampler(
            source, composition, trained.variables, images.images, key, labels, on_progress=on_progress
        )


VERBS = {
    "sample": Verb(
        "draw new images",
        _sample_options,
        _sample,
        "examples:\n"
        "  vae-jax sample runs/digits -n 64 --seed 0          from the prior\n"
        "  vae-jax sample runs/digits --from gmm              from a mixture fitted to the latents\n"
        "  vae-jax sample runs/digits --from prior,gmm,second_stage   side by side\n"
        "  vae-jax sample runs/conditional --label 3          of a model that gets labels; or a class's name",
    ),
}
