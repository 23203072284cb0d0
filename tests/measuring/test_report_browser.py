"""The page in a browser: Debian's Chromium, at the widths of a phone and of a desktop, on light and dark ground."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from validate.report.page import write

pytestmark = pytest.mark.browser

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = {"phone": 390, "desktop": 1280}
BUILT = ROOT / "reports/report.html"  # of `make repro`, with real names and figures
PAGES = ["tiny", *(["built"] if BUILT.is_file() else [])]
READABLE = 4.5  # contrast of text, by WCAG 2.2, success criterion 1.4.3

# Every element with text of its own: its colour, and the ground it stands on.
COLOURS = """() => {
  const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  const ground = element => {
    for (let here = element; here; here = here.parentElement) {
      const colour = getComputedStyle(here).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return "none";
  };
  return [...document.body.querySelectorAll("*")].filter(own).map(element => {
    const style = getComputedStyle(element);
    const text = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    return [element.tagName + " " + element.textContent.trim().slice(0, 40), text, ground(element)];
  });
}"""

# Pictures: what a browser decodes of each raster, and the size at which each drawing is shown.
PICTURES = """async () => {
  const rasters = [...document.querySelectorAll("img"), ...document.querySelectorAll("svg image")].map(element => {
    const image = new Image();
    image.src = element.getAttribute("src") || element.getAttribute("href") || element.getAttribute("xlink:href");
    return image.decode().then(() => [image.naturalWidth, image.naturalHeight]);
  });
  const drawings = [...document.querySelectorAll("svg")].map(element => {
    const box = element.getBoundingClientRect();
    return [box.width, box.height, element.querySelectorAll("text").length];
  });
  return {rasters: await Promise.all(rasters), drawings};
}"""

# Plays each sound, muted, until its clock has moved.
PLAY = """async () => {
  const found = [];
  for (const player of document.querySelectorAll("audio")) {
    player.muted = true;
    await player.play();
    const began = performance.now();
    while (player.currentTime === 0 && performance.now() - began < 5000)
      await new Promise(done => setTimeout(done, 20));
    found.push([player.readyState, player.duration, player.currentTime, String(player.error)]);
    player.pause();
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    if not CHROMIUM.is_file():
        pytest.fail(f"no {CHROMIUM}; install Debian's package chromium", pytrace=False)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(gated_chain_once: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages by name: of the tiny chain, made here, and the real one where it is built."""
    tiny = tmp_path_factory.mktemp("page") / "report.html"
    with contextlib.chdir(gated_chain_once):
        write(tiny)
    return {"tiny": tiny, "built": BUILT}


@pytest.fixture(params=[(page, width, scheme) for page in PAGES for width in WIDTHS for scheme in ("light", "dark")],
                ids=lambda param: "-".join(param))  # fmt: skip
def opened(request: pytest.FixtureRequest, browser: Any, files: dict[str, Path]) -> Iterator[Any]:
    """An opened page; at its end, whatever it asked for or complained about is held against it."""
    name, width, scheme = request.param
    context = browser.new_context(viewport={"width": WIDTHS[width], "height": 900}, color_scheme=scheme)
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda asked: requests.append(asked.url))
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(files[name].as_uri())
    yield page
    context.close()
    assert files[name].as_uri() in requests
    assert [url[:80] for url in requests if not url.startswith(("file://", "data:"))] == []
    assert {url for url in requests if url.startswith("file://")} == {files[name].as_uri()}
    assert complaints == []


def test_nothing_is_wider_than_the_window_even_when_all_is_unfolded(opened: Any) -> None:
    opened.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")

    shown, needed = opened.evaluate("[innerWidth, document.documentElement.scrollWidth]")
    reaching_out = opened.evaluate("""() => [...document.body.querySelectorAll("*")]
      .filter(element => !element.closest(".scroll > *") && !element.closest("svg > *"))
      .filter(element => element.getBoundingClientRect().right > innerWidth + 0.5)
      .map(element => element.outerHTML.slice(0, 80))""")

    assert needed <= shown
    assert reaching_out == []


def test_every_picture_is_there(opened: Any) -> None:
    found = opened.evaluate(PICTURES)

    assert len(found["rasters"]) == 3  # a spectrogram for each take
    assert all(width > 0 and height > 0 for width, height in found["rasters"])
    assert len(found["drawings"]) > 10
    assert all(width > 200 and height > 60 and texts > 3 for width, height, texts in found["drawings"])


def test_every_player_plays(opened: Any) -> None:
    found = opened.evaluate(PLAY)

    assert len(found) == 3
    for state, duration, moment, error in found:
        assert state >= 2, error  # HAVE_CURRENT_DATA
        assert duration > 0
        assert moment > 0, error
    assert len({duration for _, duration, _, _ in found}) == 1


def test_every_text_is_readable_on_its_ground(opened: Any) -> None:
    found = opened.evaluate(COLOURS)

    assert len(found) > 100
    pale = [(what, text, ground) for what, text, ground in found if _contrast(text, ground) < READABLE]
    assert pale == []


def test_the_ground_is_that_of_the_colour_scheme(opened: Any) -> None:
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")

    ground = _luminance(opened.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert ground < 0.05 if dark else ground > 0.9


def _contrast(one: str, other: str) -> float:
    """Contrast of two CSS colours, 1 to 21, by WCAG 2.2."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    assert re.fullmatch(r"rgb\(\d+, \d+, \d+\)", colour), colour
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
