"""`vae-jax explore`: the page in use in Chromium, beside the model itself; and the command."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image
from run_fixtures import TINY, flags

import vae_jax
from vae_jax import cli
from vae_jax.pages import explore
from vae_jax.pages.page import POLICY, embedded, page
from vae_jax.runs.reading import load, use

TOLERANCE = 1e-4  # of a picture in [0, 1], as the page checks it itself
RANDOM = np.random.RandomState(0)
OWN = Path(__file__).parent / "own"


@pytest.fixture(scope="module")
def driver():
    with browser.chromium() as made:
        yield made


def trained(folder, **options):
    """A run in this folder, long enough to use its z; an option that is None is left out."""
    options = {**TINY, "train.epochs": 4, "train.batch_size": 20, "objective.beta": 0.1, **options}
    options = {name: value for name, value in options.items() if value is not None}
    assert cli.main(["train", f"--out={folder}", *flags(**options)]) == 0
    return folder


def written(run, *arguments):
    """The page that the command writes, where nothing is opened."""
    assert cli.main(["explore", str(run), "--no-open", *arguments]) == 0
    return run / "explore.html"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plain") / "run", **{"model.latent": 4})


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("conditional") / "run", **{"model.classes": 10})


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    options = {"model.network": "mlp", "posterior.name": "codebook", "posterior.codes": 16, "prior.name": "uniform"}
    options |= {"posterior.places": [2, 3], "model.channels": None, "model.hidden": None, "objective.beta": None}
    return trained(tmp_path_factory.mktemp("coded") / "run", **options)


# Read from a copy: Chromium warns of canvases that are read again and again.
PIXELS = """(canvas) => {
  const pen = new OffscreenCanvas(8, 8).getContext("2d");
  pen.drawImage(canvas, 0, 0);
  return Array.from(pen.getImageData(0, 0, 8, 8).data);
}"""


class Page:
    """A page in Chromium, and the model of its run."""

    def __init__(self, driver, path):
        driver.get(path.as_uri())
        driver.get_log("browser")  # of pages before
        driver.get(path.as_uri())
        self.driver, self.run = driver, path.parent
        self.model = use(load(path.parent))
        self.settle()

    def ask(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def settle(self):
        """Waits for the next picture."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def element(self, name):
        return self.driver.find_element("id", name)

    def text(self, name="status"):
        return self.element(name).text

    def picture(self):
        """The shown picture, as levels of red."""
        return np.array(self.ask(f"({PIXELS})(document.getElementById('picture'))")).reshape(8, 8, 4)[..., 0]

    def z(self):
        return np.array(self.ask("Array.from(explorer.state.z)"))

    def plane(self):
        """The mean of z and the two principal axes."""
        middle, axes = (self.ask(f"explorer.data.{name}") for name in ("middle", "axes"))
        return (np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, self.shape()[0]) for text in (middle, axes))

    def point(self):
        """The point that the text under the picture names."""
        said = re.match(r"point \(([−\d.]+), ([−\d.]+)\)", self.text())
        return [float(number.replace("−", "-")) for number in said.groups()]

    def set(self, name, value):
        """Moves a slider or chooses an option, as a user does."""
        script = "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        script += "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true}))"
        self.driver.execute_script(script, name, str(value))
        self.settle()

    def press(self, name):
        self.element(name).click()
        self.settle()

    def drag(self, *points):
        """Presses the button at the first point of the map, as shares of it, and lets it go at the last."""
        from selenium.webdriver import ActionChains

        canvas, chain = self.element("map"), ActionChains(self.driver, 0)
        size = canvas.size
        for number, (x, y) in enumerate(points):
            chain.move_to_element_with_offset(canvas, (x - 0.5) * size["width"], (y - 0.5) * size["height"])
            if not number:
                chain.click_and_hold()
        chain.release().perform()
        self.settle()

    def keys(self, name, *keys):
        self.element(name).send_keys(*keys)
        self.settle()

    def is_right(self, label=None):
        """The picture is what the model decodes; the page's numbers are too, and its own comparison says so."""
        z = self.z()
        z = z.astype(np.int32 if self.ask("explorer.data.codes") else np.float32)
        labels = None if label is None else np.array([label])
        wanted = np.asarray(self.model.decode(z.reshape(1, *self.shape()), labels))[0]
        found = np.array(self.ask("Array.from(explorer.decode(explorer.state.z, explorer.state.label))"))
        np.testing.assert_allclose(found, wanted.ravel(), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(self.picture(), 255 * wanted[..., 0], rtol=0, atol=0.5 + 255 * TOLERANCE)
        assert self.ask("explorer.difference") <= TOLERANCE
        assert not self.element("alarm").is_displayed()
        assert self.driver.get_log("browser") == []

    def shape(self):
        codes = self.ask("explorer.data.codes")
        return codes["shape"] if codes else [self.ask("explorer.data.latent")]


@pytest.fixture(scope="module")
def explored(driver, run):
    return Page(driver, written(run))


@pytest.fixture
def plain(explored):
    explored.driver.get((explored.run / "explore.html").as_uri())
    explored.settle()
    return explored


def test_a_page_begins_with_an_image(plain):
    assert re.match(r"test image 0, label \d; decoded in \d+\.\d ms$", plain.text())
    data = vae_jax.load_data(load(plain.run).config.data)
    mu = np.asarray(plain.model.encode(data.test.images)["mu"])
    np.testing.assert_allclose(plain.z(), mu[0], rtol=0, atol=1e-6)
    assert plain.text("about").startswith("597 points: all test images. z has 4 dimensions.")
    plain.is_right()


def test_a_click_decodes_that_point(plain):
    before = plain.picture()
    plain.drag((0.2, 0.3))
    assert (plain.picture() != before).any()
    plain.is_right()
    middle, axes = plain.plane()
    np.testing.assert_allclose(axes @ (plain.z() - middle[0]), plain.point(), rtol=0, atol=0.006)  # two digits are said
    rest = np.eye(4) - axes.T @ axes  # what the plane does not show, which stays
    data = vae_jax.load_data(load(plain.run).config.data)
    first = np.asarray(plain.model.encode(data.test.images[:1])["mu"])[0]
    np.testing.assert_allclose(rest @ plain.z(), rest @ first, rtol=0, atol=1e-5)


def test_a_drag_decodes_on_the_way(plain):
    shown = "window.shown = []; new MutationObserver(() => shown.push(document.getElementById('status').textContent))"
    plain.driver.execute_script(f"{shown}.observe(document.getElementById('status'), {{childList: true}})")
    plain.drag((0.2, 0.3), (0.4, 0.5), (0.8, 0.6))
    texts = plain.ask("window.shown")
    assert texts[-1] == plain.text()
    assert all("decoded in" in text for text in texts)
    there = plain.z()
    plain.is_right()
    plain.drag((0.8, 0.6))
    np.testing.assert_allclose(plain.z(), there, rtol=0, atol=1e-5)


def test_other_axes_are_dimensions_of_z(plain):
    middle, (_, up) = plain.plane()
    number = int(np.abs(up).argmax())  # so that the map's axes, a dimension and a principal axis, are far from upright
    choice = 2 + plain.ask("explorer.data.dimensions.order").index(number)
    plain.set("across", choice)
    before = plain.z()
    plain.drag((0.3, 0.5))
    moved = plain.z()
    np.testing.assert_allclose([moved[number], up @ (moved - middle[0])], plain.point(), rtol=0, atol=0.006)
    assert abs(moved - before).max() > 0.01
    plain.is_right()
    plain.set("up", choice)  # the same on both axes: a line
    plain.drag((0.7, 0.1))
    assert np.flatnonzero(np.abs(plain.z() - moved) > 1e-6).tolist() == [number]


def test_sliders_are_sorted_by_kl(plain):
    config = load(plain.run).config
    data, order = vae_jax.load_data(config.data), plain.ask("explorer.data.dimensions.order")
    heads = plain.model.encode(data.test.images)
    mu, log_var = np.asarray(heads["mu"], float), np.asarray(heads["log_var"], float)
    kl = 0.5 * (mu**2 + np.exp(log_var) - 1 - log_var).mean(0)  # from N(0, I), in closed form
    assert order == np.argsort(-kl).tolist()
    np.testing.assert_allclose(plain.ask("explorer.data.dimensions.use"), kl[order], rtol=1e-4, atol=1e-6)
    inert = plain.ask("document.querySelectorAll('#inert input').length")
    assert inert == (kl < 0.01).sum()
    for number in order[:2]:
        before = plain.z()
        plain.set(f"z{number}", 1.25)
        assert np.flatnonzero(plain.z() != before).tolist() == [number]
        assert plain.z()[number] == pytest.approx(1.25, abs=0.03)  # a slider has steps
        plain.is_right()
        assert plain.text().startswith(f"z {number} = 1.2")


def test_the_keyboard_does_all_a_pointer_does(plain):
    from selenium.webdriver import Keys

    start, z = plain.picture(), plain.z()
    plain.keys("map", Keys.ARROW_RIGHT, Keys.ARROW_UP)
    near = plain.z()
    plain.is_right()
    plain.keys("map", Keys.SHIFT + Keys.ARROW_RIGHT)
    assert (plain.picture() != start).any()
    assert 3 < np.linalg.norm(plain.z() - near) / np.linalg.norm(near - z) < 12  # Shift goes further
    plain.keys("map", Keys.ENTER)
    assert plain.text().startswith("test image ")
    plain.driver.execute_script("document.body.focus()")
    names = plain.ask(
        "Array.from(document.querySelectorAll('button, select, input, canvas')).filter(e => e.offsetParent)"
        ".map(e => [e.tagName, e.getAttribute('aria-label') || e.textContent || e.labels?.[0]?.textContent || ''])"
    )
    assert all(name.strip() for tag, name in names if tag != "CANVAS"), names
    plain.driver.execute_async_script("setTimeout(arguments[0], 600)")
    assert plain.ask("document.getElementById('live').textContent") == plain.text()  # what a screen reader says
    assert plain.element("picture").get_attribute("aria-label") == f"decoded picture: {plain.text()}"


def test_from_one_image_to_another(plain):
    assert not plain.element("path").is_enabled()
    plain.set("action", "a")
    plain.drag((0.2, 0.3))
    first = plain.z()
    plain.set("action", "b")
    plain.drag((0.8, 0.7))
    second = plain.z()
    assert np.abs(first - second).max() > 0.1
    plain.set("path", 0.25)
    np.testing.assert_allclose(plain.z(), 0.75 * first + 0.25 * second, rtol=0, atol=1e-5)
    assert plain.text().startswith("0.25 of the way from A to B")
    plain.is_right()
    plain.press("middle")
    plain.press("keep-a")
    plain.set("path", 0)
    np.testing.assert_allclose(
        plain.z(), np.frombuffer(base64.b64decode(plain.ask("explorer.data.middle")), "<f4"), atol=1e-6
    )


def test_samples_of_the_prior(plain):
    assert plain.ask("document.querySelectorAll('#samples button').length") == 12
    plain.set("temperature", 0)
    plain.press("draw")
    plain.driver.find_element("css selector", "#samples button").click()
    plain.settle()
    assert plain.z().tolist() == [0] * 4
    plain.is_right()
    plain.set("temperature", 1)
    drawn, taken = [], "(button) => (button.click(), Array.from(explorer.state.z))"
    for _ in range(12):
        plain.press("draw")
        drawn += plain.ask(f"Array.from(document.querySelectorAll('#samples button')).map({taken})")
    assert np.shape(drawn) == (144, 4)
    assert np.abs(np.mean(drawn)) < 0.2  # 576 numbers: 0.04 is one deviation
    assert 0.85 < np.std(drawn) < 1.15


def test_images_are_shown_under_the_pointer(plain):
    from selenium.webdriver import ActionChains

    assert not plain.element("hover").is_displayed()
    data = vae_jax.load_data(load(plain.run).config.data)
    place = plain.ask("""(() => {
      const map = document.getElementById('map'), box = map.getBoundingClientRect();
      for (let y = 0; y < box.height; y += 3) for (let x = 0; x < box.width; x += 3) {
        map.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + x, clientY: box.top + y}));
        if (!document.getElementById('hover').hidden) return [x - box.width / 2, y - box.height / 2];
      }
    })()""")
    ActionChains(plain.driver, 0).move_to_element_with_offset(plain.element("map"), *place).perform()
    said = re.fullmatch(r"image (\d+), label (\d)", plain.element("hover").text)
    image, label = map(int, said.groups())
    assert data.test.labels[image] == label
    pixels = plain.ask(f"({PIXELS})(document.querySelector('#hover canvas'))")
    np.testing.assert_array_equal(np.reshape(pixels, (8, 8, 4))[..., 0], data.test.images[image, ..., 0])


def test_a_label_can_be_shown_alone(plain):
    button = plain.driver.find_elements("css selector", "#legend button")[3]
    assert (button.text, button.get_attribute("aria-pressed")) == ("3", "false")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    plain.press("nearest")
    assert re.match(r"test image \d+, label 3;", plain.text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(plain, scheme):
    plain.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    colours = plain.ask("['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])")
    text, ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (text < ground) == (scheme == "light")
    plain.is_right()


def test_a_page_fetches_nothing(plain):
    text = (plain.run / "explore.html").read_text(encoding="utf-8")
    assert POLICY in text
    assert not re.findall(
        r"(?:https?:)?//[a-z]|\b(?:src|href)=(?!\"data:)|@import|url\(",
        re.sub(r"data:image/[^\"]*", "", text.partition("<script")[0]),
    )
    assert plain.ask("performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length") == 0


def test_a_conditional_model_has_its_class_chosen(driver, conditional):
    shown = Page(driver, written(conditional, "-n=50"))
    assert shown.text("about").startswith("50 points of 597 test images, spread over them.")
    label = shown.ask("explorer.state.label")
    shown.is_right(label)
    before, other = shown.picture(), (label + 1) % 10
    shown.set("class", other)
    assert (shown.picture() != before).any()
    assert f"class {other}" in shown.text()
    shown.is_right(other)
    shown.set("action", "nearest")
    shown.drag((0.3, 0.3))
    said = re.search(r"label (\d); class (\d)", shown.text())
    assert said[1] == said[2]  # an image is decoded with its own label
    shown.is_right(int(said[2]))


def test_codes_are_edited(driver, coded):
    from selenium.webdriver import Keys

    shown = Page(driver, written(coded))
    data = vae_jax.load_data(load(coded).config.data)
    codes = np.asarray(shown.model.encode(data.test.images[:1])["codes"])[0]
    assert shown.z().reshape(2, 3).tolist() == codes.tolist()
    shown.is_right()
    cells = shown.driver.find_elements("css selector", "#codes button")
    assert [int(cell.text) for cell in cells] == codes.ravel().tolist()
    cells[0].click()
    cells[0].send_keys(Keys.ARROW_DOWN)
    shown.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    changed = (codes[1, 1] + 5) % 16
    before = shown.picture()
    shown.set("code", changed)
    assert shown.z().reshape(2, 3)[1, 1] == changed
    assert (shown.z() != codes.ravel()).sum() == 1
    assert shown.text().startswith(f"code {changed} at place 1, 1")
    assert (shown.picture() != before).any()
    shown.is_right()
    shown.press("nearest")
    assert shown.text().startswith("test image 0, ")
    assert shown.z().tolist() == codes.ravel().tolist()
    shown.drag((0.6, 0.6))
    assert shown.text().startswith("test image ")
    shown.is_right()
    shown.keys("map", Keys.ARROW_LEFT)
    shown.is_right()
    assert shown.ask("document.querySelectorAll('#samples button').length") == 12
    assert shown.text("prior") == "From the prior uniform: 64 draws made with this page."
    assert not shown.element("path").is_displayed()
    assert not shown.element("dimensions-section").is_displayed()


def test_a_hierarchy_has_samples_drawn_before(driver, tmp_path):
    network = {
        "model.network": f"{OWN / 'ladder.py'}:ladder",
        "train.epochs": 1,
        "model.channels": None,
        "model.hidden": None,
    }
    shown = Page(driver, written(trained(tmp_path / "run", **{**network, "model.latent": None})))
    shown.is_right()
    assert "Sorted by the variance" in shown.text("dimensions-help")
    assert "64 draws made with this page" in shown.text("prior")
    shown.driver.find_element("css selector", "#samples button").click()
    shown.settle()
    shown.is_right()


def test_an_autoencoder_has_no_samples(driver, tmp_path):
    options = {"objective.name": "autoencoder", "objective.beta": None, "model.network": "mlp", "train.epochs": 1}
    options |= {"model.channels": None, "model.hidden": None}
    shown = Page(driver, written(trained(tmp_path / "run", **options)))
    shown.is_right()
    assert shown.text("prior") == "None: objective autoencoder has no prior."
    assert not shown.element("draw").is_displayed()


def test_a_browser_that_computes_otherwise_is_said(driver, run, tmp_path):
    text = written(run).read_text(encoding="utf-8")
    other = tmp_path / "other.html"
    other.write_text(text.replace("1 / (1 + Math.exp(-a[n]))", "1 / (1.01 + Math.exp(-a[n]))"), encoding="utf-8")
    driver.get(other.as_uri())
    assert "differ from the model's by up to 0.0" in driver.find_element("id", "alarm").text


# The command and what is written


def test_the_file_is_named_last(run, tmp_path, capsys, monkeypatch):
    capsys.readouterr()
    path = tmp_path / "new" / "latent.html"
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    assert cli.main(["explore", str(run), f"--out={path}", "-n", "10"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{path}\n"
    assert "on the map: 10 of 597 test images, spread over them" in printed.err
    assert opened == [path.as_uri()]
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cli.main(["explore", str(run), f"--out={path}", "-n", "10"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, len(opened)) == (f"{path}\n", 1)
    assert "no browser is opened, since there is no screen here: open the file in one" in printed.err
    assert cli.main(["explore", str(run), f"--out={path}", "-n", "10", "--no-open"]) == 0
    assert "no browser" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--out=latent.png"], "--out: expected a name that ends in .html or .htm; found latent.png"),
        (["-n", "0"], "-n: expected a number from 1 to 1,000,000; found 0"),
        (["--checkpoint", "last"], "--checkpoint: expected latest or best; found 'last'"),
    ],
)
def test_bad_input_ends_in_one_line(run, capsys, arguments, line):
    capsys.readouterr()
    assert cli.main(["explore", str(run), "--no-open", *arguments]) == 2
    assert capsys.readouterr().err == f"vae-jax: error: {line}\n"


def test_text_of_others_stays_text():
    mean = "</script><script>alert(1)</script>&'\"\u2028"
    assert json.loads(embedded([mean])) == [mean]
    assert not set("<>&\u2028") & set(embedded([mean]))
    made = page(mean, "", data={"name": mean})
    assert made.count("<script") == 1
    assert "<title>&lt;/script&gt;" in made


def test_principal_axes_are_those_of_the_covariances():
    z = (RANDOM.randn(50, 600) * np.linspace(0.1, 3, 600)).astype(np.float32)
    for array in (z[:, :4], z[:, :1], z):
        middle, axes, shares = explore.principal_axes(array)
        values, vectors = np.linalg.eigh(np.cov(array.T.astype(float)).reshape(array.shape[1], -1))
        np.testing.assert_allclose(middle, array.mean(0), atol=1e-5)
        for number in range(min(2, array.shape[1])):
            assert abs(axes[number] @ vectors[:, -1 - number]) == pytest.approx(1, abs=1e-4)
            assert shares[number] == pytest.approx(values[-1 - number] / values.sum(), rel=1e-4)
    assert explore.principal_axes(z[:, :1])[1].tolist() == [[1], [0]]
    assert explore.principal_axes(np.zeros((5, 3), np.float32))[2].tolist() == [0, 0]


@pytest.mark.parametrize("points", [2, 3, 4, 64])
def test_principal_axes_of_fewer_points_than_dimensions(points, monkeypatch):
    z = (np.random.RandomState(1).randn(points, 1024) * np.linspace(0.1, 3, 1024)).astype(np.float32)
    centred = z.astype(float) - z.mean(0, dtype=float)
    values, vectors = np.linalg.eigh(centred @ centred.T)  # of the points, whose axes are sums of their rows
    monkeypatch.setattr(np.linalg, "eigh", None)  # of 1024 × 1024 numbers takes long
    _, axes, shares = explore.principal_axes(z)
    for number in range(min(2, points - 1)):
        right = vectors[:, -1 - number] @ centred
        assert abs(axes[number] @ right) / np.linalg.norm(right) == pytest.approx(1, abs=1e-4)
        assert shares[number] == pytest.approx(values[-1 - number] / values.sum(), rel=1e-4)


@pytest.mark.parametrize("points", [1, 2, 5, 64])
def test_equal_points_of_many_dimensions_have_no_axes(points):
    middle, axes, shares = explore.principal_axes(np.full((points, 1024), 0.3, np.float32))
    assert (middle == np.float32(0.3)).all()
    assert not axes.any()
    assert shares.tolist() == [0, 0]


def test_points_on_a_line_have_one_axis():
    line = np.random.RandomState(2).randn(1024)
    _, axes, shares = explore.principal_axes(np.outer(np.arange(8), line).astype(np.float32))
    assert abs(axes[0] @ line) / np.linalg.norm(line) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(shares, [1, 0], atol=1e-6)
    assert np.isfinite(axes).all()


@pytest.mark.parametrize(("shape", "wanted"), [((7, 5, 1), (7, 5)), ((64, 32, 1), (32, 16)), ((40, 80, 3), (16, 32))])
def test_thumbnails_are_small_and_in_rows(shape, wanted):
    images = RANDOM.randint(0, 256, (10, *shape)).astype(np.uint8)
    made = explore.thumbnails(images)
    assert (made["height"], made["width"], made["columns"]) == (*wanted, 4)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(made["picture"].partition(",")[2]))))
    assert sheet.shape[:2] == (3 * wanted[0], 4 * wanted[1])
    if shape == (7, 5, 1):
        np.testing.assert_array_equal(sheet[7:14, 5:10], images[5, ..., 0])
