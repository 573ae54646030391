"""Pictures: each array lands where it should, with its grey level or its colour."""

import os
import subprocess
import sys
import warnings
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vae_jax.data import Dataset, Split
from vae_jax.model.model import Model
from vae_jax.pictures import plots
from vae_jax.pictures.plots import comparison, latent_plane, loss_curve, new_figure
from vae_jax.pictures.sheet import Sheet, Words, enlargement, grid, pairs, png, save_picture
from vae_jax.pictures.sweeps import sweep_curves, sweep_grid
from vae_jax.runs.final_pictures import draw_latent_plane

PANELS = ("test −ELBO", "test reconstruction", "test KL")
LINE, GAP = 2, 8  # pixels between pictures, and the gap beside a text


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def levels(count, side=4, channels=1):
    """Pictures of one level each, all different."""
    level = np.linspace(0.1, 0.9, count * channels).reshape(count, 1, 1, channels)
    return np.broadcast_to(level, (count, side, side, channels))


def cell(image, row, column, side, scale, above=0):
    """The pixels of one picture in a grid, of which some pixels above are texts."""
    pitch = side * scale + LINE
    top, left = LINE + row * pitch + above, LINE + column * pitch
    return image[top : top + side * scale, left : left + side * scale]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_each_picture_in_its_cell(tmp_path, channels):
    pictures = levels(5, channels=channels)
    path = grid(tmp_path / "new" / "grid.png", pictures, columns=3)
    image = read(path)
    scale = 192 // 4
    size = (2 * (4 * scale + LINE) + LINE, 3 * (4 * scale + LINE) + LINE)
    assert image.shape == (size if channels == 1 else (*size, 3))
    for i, picture in enumerate(pictures):
        expected = np.rint(picture[0, 0] * 255).astype(np.uint8)
        assert (cell(image, i // 3, i % 3, 4, scale) == expected).all()
    assert (cell(image, 1, 2, 4, scale) == 255).all()  # no sixth picture
    assert (image[:LINE] == 255).all()
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]  # nothing temporary is left


def test_grid_keeps_a_picture_as_it_is(tmp_path):
    picture = np.arange(16).reshape(1, 4, 4, 1) / 255
    image = read(grid(tmp_path / "one.png", picture, columns=1))
    assert (cell(image, 0, 0, 4, 48)[::48, ::48] == np.arange(16).reshape(4, 4)).all()


def test_grid_clips_what_is_outside(tmp_path):
    pictures = np.stack([np.full((4, 4, 1), -0.5), np.full((4, 4, 1), 1.5)])
    image = read(grid(tmp_path / "grid.png", pictures, columns=2))
    assert (cell(image, 0, 0, 4, 48) == 0).all()
    assert (cell(image, 0, 1, 4, 48) == 255).all()


def test_grid_of_large_pictures_is_not_enlarged(tmp_path):
    image = read(grid(tmp_path / "grid.png", np.zeros((2, 500, 500, 1)), columns=2))
    assert image.shape == (504, 1006)


def test_a_failure_leaves_nothing(tmp_path):
    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_picture(tmp_path / "some.png", fail)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def texts(monkeypatch):
    """The texts that are written on pictures, with their places, left and top."""
    written, write = {}, ImageDraw.ImageDraw.text

    def text(self, place, words, **options):
        written[words] = place
        write(self, place, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_are_above_each_other(tmp_path, channels, texts):
    """A row of originals stands above that of their reconstructions, and below these their names and errors."""
    pictures = levels(10, channels=channels)
    above, below = pictures[:5], pictures[5:]
    image = read(pairs(tmp_path / "pairs.png", above, below, columns=3, names=["a", "b", "c", "d", "e"]))
    scale, line = 48, 14 + GAP
    pitch = 4 * scale + LINE
    title = image.shape[0] - LINE - 4 * pitch - 2 * line  # two rows have captions
    assert title == 2 * line + GAP
    for i in range(5):
        row, column = 2 * (i // 3), i % 3
        for pictures, place in ((above, row), (below, row + 1)):
            expected = np.rint(pictures[i, 0, 0] * 255).astype(np.uint8)
            assert (cell(image, place, column, 4, scale, title + i // 3 * line) == expected).all()
        error = np.sqrt(np.mean((above[i] - below[i]) ** 2))
        left, top = texts[f"{'abcde'[i]}: {error:#.2g}"]
        assert left == LINE + column * pitch + 2 * scale
        assert top == title + (row + 2) * pitch + i // 3 * line + GAP / 2
        below_pair = image[int(top) : int(top) + 14, column * pitch : column * pitch + pitch]
        assert (below_pair.min(), below_pair.max()) == (0, 255)
    assert (cell(image, 2, 2, 4, scale, title + line) == 255).all()
    assert (cell(image, 3, 2, 4, scale, title + line) == 255).all()
    title_lines = " ".join(list(texts)[:2])
    assert title_lines.endswith("with class and root-mean-square error of pixels from 0 to 1")


def test_fewer_pairs_than_columns(tmp_path, texts):
    image = read(pairs(tmp_path / "pairs.png", np.zeros((2, 4, 4, 1)), np.ones((2, 4, 4, 1))))
    assert image.shape[1] == 2 * (4 * 48 + LINE) + LINE
    assert "1.0" in texts
    assert not any("class" in text for text in texts)


def test_a_caption_is_no_wider_than_its_picture(tmp_path, texts):
    """A long name is cut, and its error is not."""
    pairs(tmp_path / "pairs.png", np.zeros((1, 4, 4, 1)), np.ones((1, 4, 4, 1)), names=["a name " * 20])
    (caption,) = [text for text in texts if text.startswith("a name a name")]
    assert caption.endswith("… 1.0")
    assert len(caption) < 40


def test_blocks_stand_side_by_side(tmp_path, texts):
    """Pictures of one block after the other, below their titles, with labels of the rows."""
    pictures = levels(8)
    sheet = Sheet(8, (4, 4, 1), 2, words=Words(blocks=["prior", "gmm"], rows=["low", "high"]))
    sheet.put(range(8), pictures)
    image, pitch = read(sheet.save(tmp_path / "blocks.png")), 4 * 48 + LINE
    top = 14 + GAP + GAP
    margin = image.shape[1] - LINE - 4 * pitch - 2 * GAP
    assert 2 * GAP < margin < 80
    for block, row, column in product(range(2), repeat=3):
        left = margin + column * pitch + block * (2 * pitch + 2 * GAP)
        shown = cell(image[:, left:], row, 0, 4, 48, top)
        assert (shown == np.rint(pictures[4 * block + 2 * row + column, 0, 0, 0] * 255)).all()
    assert texts["prior"][0] + 2 * pitch + 2 * GAP == texts["gmm"][0]
    assert texts["low"][1] + pitch == texts["high"][1]


def test_pictures_have_a_sensible_size_whatever_their_number():
    """From 24 to 192 pixels a side, if a row has room for them, and wide sheets 1,536 pixels."""
    assert [enlargement(columns, 32) * 32 for columns in (1, 4, 8, 16, 48, 100)] == [192, 192, 192, 96, 32, 32]
    assert [enlargement(columns, 8) * 8 for columns in (1, 16, 64, 100, 400, 1000)] == [192, 96, 24, 24, 8, 8]
    assert enlargement(1, 500) == 1


def test_texts_have_six_points_in_print(tmp_path, monkeypatch):
    """On a sheet that is printed as wide as a page's text; a narrow one is printed smaller."""
    sizes, write = [], ImageDraw.ImageDraw.text

    def text(self, place, words, font, **options):
        sizes.append(font.size)
        write(self, place, words, font=font, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    for columns in (16, 48):
        path = pairs(tmp_path / "pairs.png", np.zeros((96, 32, 32, 1)), np.ones((96, 32, 32, 1)), columns)
        with Image.open(path) as image:
            resolution = image.info["dpi"][0]
            inches = image.width / resolution
        assert 6.4 < inches < 7.2
        assert min(sizes) / resolution * 72 > 6


def history(epochs, splits, kl):
    parts = {"loss": 2.0, "reconstruction": 2.0 - kl, "kl": kl}
    return [
        {"epoch": epoch + 1, **{f"{split}_{part}": value for split in splits for part, value in parts.items()}}
        for epoch in range(epochs)
    ]


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that are drawn."""
    made = []
    figure = new_figure
    for module in ("plots", "sweeps"):
        name = f"vae_jax.pictures.{module}.new_figure"
        monkeypatch.setattr(name, lambda *size: made.append(figure(*size)) or made[-1])
    return made


@pytest.mark.parametrize("epochs", [1, 2, 30])
@pytest.mark.parametrize("splits", [("train", "test"), ("train", "validation", "test")])
def test_loss_curve(tmp_path, drawn, epochs, splits):
    path = loss_curve(tmp_path / "loss.png", history(epochs, splits, 0.5), lambda name: "nats per image")
    assert read(path).ndim == 3
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels] == ["loss", "reconstruction", "KL"]
    for panel, value in zip(panels, (2.0, 1.5, 0.5), strict=True):
        assert tuple(line.get_label() for line in panel.lines) == splits
        for line in panel.lines:
            assert list(line.get_xdata()) == list(range(1, epochs + 1))
            assert list(line.get_ydata()) == [value] * epochs
    assert panels[0].get_ylabel() == "nats per image"


def test_loss_curve_of_an_autoencoder_has_one_panel(tmp_path, drawn):
    loss_curve(tmp_path / "loss.png", history(2, ("train", "test"), 0.0), lambda name: "squared error per image")
    assert [panel.get_title() for panel in drawn[0].axes] == ["loss"]


def test_loss_curve_shows_an_objectives_own_figures_with_their_units(tmp_path, drawn):
    epochs = [{**epoch, "train_codes": 3.0, "test_codes": 4.0} for epoch in history(2, ("train", "test"), 0.5)]
    units = {"codes": "codes in use"}
    loss_curve(tmp_path / "loss.png", epochs, lambda name: units.get(name, "nats per image"))
    assert [panel.get_title() for panel in drawn[0].axes] == ["loss", "reconstruction", "KL", "codes"]
    assert [panel.get_ylabel() for panel in drawn[0].axes] == ["nats per image", "", "", "codes in use"]
    assert list(drawn[0].axes[3].lines[1].get_ydata()) == [4.0, 4.0]


def panels(figure):
    return {panel.get_title(): panel for panel in figure.axes}


@pytest.mark.parametrize("labels", [None, np.array([0, 1, 1])])
@pytest.mark.parametrize("channels", [1, 3])
def test_latent_plane(tmp_path, drawn, labels, channels):
    means = np.array([[-1.0, 0.0], [0.5, 2.0], [1.0, 1.0]])
    decoded = np.zeros((9, 4, 4, channels))
    decoded[:3] = 1.0  # the first row: white
    decoded[3] = 0.5  # the second row's first picture: grey
    path = latent_plane(tmp_path / "plane.png", means, labels, decoded, extent=3.0)
    assert read(path).ndim == 3
    scatter, plane = (panels(drawn[0])[title] for title in ("test images", "decoded"))
    np.testing.assert_array_equal(scatter.collections[0].get_offsets(), means)
    assert len(drawn[0].axes) == (2 if labels is None else 3)  # the classes' colours
    assert (scatter.get_xlim(), scatter.get_ylim()) == ((-3, 3), (-3, 3))
    shown = plane.images[0]
    assert (shown.origin, shown.get_extent()) == ("upper", [-3, 3, -3, 3])
    tiles = np.asarray(shown.get_array())
    assert tiles.shape[:2] == (12, 12)
    assert (tiles[:4] == 1).all()  # at z2 = 3
    assert (tiles[4:8, :4] == 0.5).all()
    assert (tiles[4:8, 4:] == 0).all()
    assert (tiles[8:] == 0).all()


@pytest.mark.parametrize(("classes", "named"), [(3, True), (20, True), (21, False)])
def test_the_latent_planes_classes_have_their_names(tmp_path, drawn, classes, named):
    labels = np.arange(classes)[::-1].copy()
    names = tuple(f"class ${label}" for label in range(classes))
    latent_plane(tmp_path / "plane.png", np.zeros((classes, 2)), labels, np.zeros((1, 2, 2, 1)), 3.0, names)
    (classes_bar,) = [axes for axes in drawn[0].axes if axes.get_ylabel() == "class"]
    shown = [text.get_text() for text in classes_bar.get_yticklabels()]
    assert shown == ([name.replace("$", r"\$") for name in names] if named else [str(n) for n in range(classes)])
    colours = panels(drawn[0])["test images"].collections[0].to_rgba(labels)
    assert len(np.unique(colours, axis=0)) == classes


HARMFUL = ("$\\frac{", "$a$", r"\$", "a\nb\r", "\x1b[31m\u202e", "_hidden", "%s {0}", "x" * 1_000_000)


def test_names_in_pictures_are_text(tmp_path, drawn):
    """Not mathematics, which may be wrong, nor so long that nothing else is seen; each is there."""
    names = tuple(HARMFUL)
    expected = [
        r"$\frac{",
        "$a$",
        r"\$",
        r"a\nb\r",
        r"\x1b[31m\u202e",
        " _hidden",
        "%s {0}",
        "x" * plots.LABEL + " …",
    ]
    labels = np.arange(len(names))
    latent_plane(tmp_path / "a.png", np.zeros((len(names), 2)), labels, np.zeros((1, 2, 2, 1)), 3.0, names)
    curves = {name: {"loss": np.ones((2, 3)), "$k$": np.ones((2, 3))} for name in names}
    sweep_curves(tmp_path / "b.png", curves, "$u", "$t")
    cells = {(("$o", name), ("p", "1")): {"$f$": [1.0]} for name in names}
    sweep_grid(tmp_path / "c.png", {"$o": list(names), "p": ["1"]}, cells, "$u", "$t")
    runs = {name: np.ones((2, 3)) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a legend that leaves no room for the axes
        comparison(tmp_path / "d.png", runs, {}, {}, "$u")
    (classes,) = [axes for axes in drawn[0].axes if axes.get_ylabel() == "class"]
    bar, legend, ticks, other = (
        classes.get_yticklabels(),
        drawn[1].axes[-1].get_legend().get_texts(),
        drawn[2].axes[0].get_yticklabels(),
        drawn[3].axes[0].get_legend().get_texts(),
    )
    for texts in (bar, legend, ticks):
        assert [text._preprocess_math(text.get_text()) for text in texts] == [(name, False) for name in expected]
    assert len(other) == len(names)


def test_signs_that_the_font_does_not_have_are_said_in_one_line(tmp_path):
    with pytest.warns(UserWarning, match="boxes stand for signs that the font lacks: 日, 本$") as warned:
        sweep_curves(tmp_path / "a.png", {"日本": {"loss": np.ones((2, 3))}}, "日", "")
    assert len(warned) == 1
    assert read(tmp_path / "a.png").ndim == 3


def test_the_decoded_plane_has_z2_upwards_and_z1_to_the_right(tmp_path, drawn):
    """A decoder that shows z1 as red and z2 as green: red grows to the right, green upwards."""

    def decode(z):
        z = np.asarray(z)
        colours = np.stack([(z[:, 0] + 3) / 6, (z[:, 1] + 3) / 6, np.zeros(len(z))], -1)
        return np.broadcast_to(colours[:, None, None], (len(z), 4, 4, 3))

    model = Model(lambda images: {"mu": np.zeros((len(images), 2))}, decode, decode, None, 2)
    split = Split(np.zeros((5, 4, 4, 3), np.uint8), np.arange(5))
    draw_latent_plane(tmp_path / "plane.png", model, Dataset("some", split, split), side=4)
    tiles = np.asarray(panels(drawn[0])["decoded"].images[0].get_array())[::4, ::4]
    np.testing.assert_allclose(tiles[:, :, 0], np.tile(np.linspace(0, 1, 4), (4, 1)), atol=1e-6)
    np.testing.assert_allclose(tiles[:, :, 1], np.tile(np.linspace(1, 0, 4)[:, None], (1, 4)), atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "written"),
    [((1,), True), ((3,), True), ((2, 3), True), ((300,), True), ((4, 40), False), ((60, 50), False)],
)
def test_a_sweeps_pictures_hold_however_many_values(tmp_path, monkeypatch, counts, written):
    drawn = []
    monkeypatch.setattr(
        "vae_jax.pictures.sweeps.new_figure", lambda *size, make=new_figure: drawn.append(make(*size)) or drawn[-1]
    )
    settings = {f"option{i}": [str(value) for value in range(count)] for i, count in enumerate(counts)}
    every = [tuple(zip(settings, values, strict=True)) for values in product(*settings.values())]
    cells = {setting: {part: [float(i), i + 1.0] for part in PANELS} for i, setting in enumerate(every)}
    gone = {part: [] for part in PANELS}  # all of this setting's members have diverged
    image = read(sweep_grid(tmp_path / "grid.png", settings, cells | {every[0]: gone}, "nats"))
    assert 400 < len(image) < 10_000
    assert 400 < len(image[0]) < 10_000
    axes, texts = drawn[0].axes[0], [text.get_text() for text in drawn[0].axes[0].texts]
    assert axes.get_title() == "test −ELBO (nats)"
    assert len(axes.get_xticks()) <= max(34, counts[-1] // 2)
    if len(counts) == 1:
        assert texts == ["diverged"]
    if len(counts) == 2:
        assert texts == (["diverged", *(f"{i + 0.5:.4g}" for i in range(1, len(every)))] if written else [])
        assert written or drawn[0].axes[-1].get_ylabel() == "white: all diverged"
    # A setting whose figures are of another unit is no cell here, and has not diverged.
    rest = {setting: cell for setting, cell in cells.items() if setting != every[0]}
    if rest:
        sweep_grid(tmp_path / "grid.png", settings, rest, "nats", "of these")
        other = drawn.pop()
        assert other.get_suptitle() == "of these"
        assert "diverged" not in [text.get_text() for text in other.axes[0].texts]
    curves = {"one": {part: np.ones((2, 3)) for part in PANELS}}
    curves |= {"gone": {part: np.empty(0) for part in PANELS}}
    sweep_curves(tmp_path / "curves.png", curves, "nats", "some of them")
    title = "mean over seeds, with their standard deviation; some of them"
    assert [panel.get_ylabel() for panel in drawn[1].axes] == ["nats"] * 3
    assert drawn[1].get_suptitle() == title
    assert [text.get_text() for text in drawn[1].axes[-1].get_legend().get_texts()] == ["one", "gone"]


@pytest.mark.parametrize(
    ("backend", "later"),
    [("module://matplotlib_inline.backend_inline", ""), ("nonsense", ""), ("svg", "svg"), ("module://not.there", None)],
)
def test_the_backend_of_a_notebook_is_not_looked_at(tmp_path, backend, later):
    """Here it may not be installed; what this process draws later on by itself gets it as it asked."""
    code = (
        "import os, sys; from vae_jax.pictures import plots, sweeps; from pathlib import Path\n"
        "history = [{'epoch': 1, 'train_kl': 0, 'train_loss': 1, 'test_loss': 1}]\n"
        "plots.loss_curve(Path(sys.argv[1]), history, str)\n"
        "sweeps._shades(11)\n"
        "import matplotlib; print(matplotlib.get_backend(auto_select=False) or '', os.environ['MPLBACKEND'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "loss.png"],
        env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == f"{backend if later is None else later} {backend}"
    assert read(tmp_path / "loss.png").ndim == 3


def test_a_picture_shows_itself_and_is_a_path_still(tmp_path):
    path = tmp_path / "grid.png"
    picture = grid(path, levels(2), columns=2)
    assert picture == path
    assert picture._repr_png_() == path.read_bytes() == png(levels(2), columns=2)
    picture.unlink()
    assert picture._repr_png_() is None
