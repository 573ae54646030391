"""The page of `vae-jax explore`: its size, the time to make it, and how fast it decodes in Chromium.

    python benchmarks/explore.py RUN [--data.manual_dir DIR]

Drags over the map in 200 steps, a frame each, as a hand does, and prints the milliseconds of decoding: that of the
first step, the median, and the slowest of 19 in 20; and from a step to its picture on the canvas.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 200
DRAG = """
const done = arguments[1], map = document.getElementById("map"), box = map.getBoundingClientRect(), found = [];
const shown = (step) => {
  if (step > 0) found.push([explorer.state.milliseconds, performance.now() - asked]);
  if (step === arguments[0]) return done(found);
  const turn = step / 15, kind = step ? "pointermove" : "pointerdown";
  asked = performance.now();
  map.dispatchEvent(new PointerEvent(kind, {
    pointerId: 1, buttons: 1,
    clientX: box.left + box.width * (0.5 + 0.3 * Math.cos(turn)),
    clientY: box.top + box.height * (0.5 + 0.3 * Math.sin(turn)),
  }));
  requestAnimationFrame(() => shown(step + 1));
};
let asked = 0;
map.setPointerCapture = () => {};
requestAnimationFrame(() => shown(0));
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    options, more = parser.parse_known_args()
    from selenium import webdriver

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explore.html"
        command = ["-m", "vae_jax", "explore", options.run, "--no-open", f"--out={path}", *more]
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        made = time.perf_counter() - start
        size = path.stat().st_size / 1e6
        settings = webdriver.ChromeOptions()
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1000"):
            settings.add_argument(flag)
        driver = webdriver.Chrome(settings, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            driver.get(path.as_uri())
            driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            version = driver.capabilities["browserVersion"]
            found = driver.execute_async_script(DRAG, STEPS)
        finally:
            driver.quit()
    times = {"decoding": [pair[0] for pair in found], "to the canvas": [pair[1] for pair in found]}
    print(f"{path.name} of {options.run}: {size:.2f} MB, made in {made:.1f} s; Chromium {version}")
    for name, each in times.items():
        ordered = sorted(each)
        print(
            json.dumps(
                {name: {"first": each[0], "median": ordered[len(each) // 2], "95%": ordered[len(each) * 19 // 20]}}
            )
        )


if __name__ == "__main__":
    main()
