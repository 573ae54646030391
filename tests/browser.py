"""A headless Chromium for tests of pages, and programs that run in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from vae_jax.pages.program import Program

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# Chromium does not run as root inside its own sandbox; the pages are ours.
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1100")
RUN = """
const [program, inputs] = arguments, prepared = Program.prepared(program);
for (const [name, numbers] of Object.entries(inputs)) prepared.inputs[name].set(numbers.map(Number));
return prepared.run().map((array) => Array.from(array, String));
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """The driver of a headless Chromium; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the extra `test`")
    browser, driver = next(filter(None, map(shutil.which, CHROMIUM)), None), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield made
    finally:
        made.quit()


def computed(driver: Any, program: Program, **inputs: Any) -> list[np.ndarray]:
    """The results of a program that a page with `program.js` in it computes, flat."""
    # Numbers are text on the way, since JSON has no infinities.
    given = {name: [_spelled(number) for number in np.asarray(array).ravel()] for name, array in inputs.items()}
    results = driver.execute_script(RUN, program.as_json(), given)
    return [np.array([float(text.replace("Infinity", "inf")) for text in result]) for result in results]


def _spelled(number: Any) -> str:
    return repr(float(number)).replace("inf", "Infinity").replace("nan", "NaN")
