"""Pages with a figure: as light or dark as their reader's screen."""

import base64
import html.parser
import io
import re

import matplotlib.image
import matplotlib.style
import numpy as np
import pandas as pd
import pytest

from kltarget import pages, plot
from kltarget.forecasts import forecast
from kltarget.recipes import Recipe

VOID = {"meta", "img", "source", "br"}
# WCAG 2.1, 1.4.3, level AA.
LEAST_CONTRAST = 4.5


class Elements(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.met = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.met.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def named(self, tag):
        return [(attributes, inside) for name, attributes, inside in self.met if name == tag]


def of_a_forecast():
    counts = pd.DataFrame({"prompt": ["a", "b", "c"], "correct": [0, 3, 8], "samples": 8})
    return pages.forecast(forecast(counts, Recipe()))


@pytest.fixture(scope="module")
def forecast_page():
    return of_a_forecast()


def pictures(page):
    """The pixels of the page's light and of its dark figure."""
    elements = Elements(page)
    ((image, around),) = elements.named("img")
    ((variant, beside),) = elements.named("source")
    assert around == beside
    assert around[-1] == "picture"
    assert variant["media"] == "(prefers-color-scheme: dark)"
    for source in (image["src"], variant["srcset"]):
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        yield matplotlib.image.imread(io.BytesIO(base64.b64decode(data, validate=True)))


def luminance(color):
    color = "".join(2 * x for x in color) if len(color) == 3 else color
    parts = np.array([int(color[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_page_holds_its_figure_light_and_dark(forecast_page):
    light, dark = pictures(forecast_page)
    assert light.shape == dark.shape
    assert light[0, 0].tolist() == [1, 1, 1, 1]
    assert np.mean(dark[0, 0, :3]) < 0.2
    # The same drawing: what differs from the background is at the same places.
    drawn = [np.any(np.abs(x - x[0, 0]) > 0.05, axis=-1) for x in (light, dark)]
    assert np.mean(drawn[0] == drawn[1]) > 0.95


def test_a_page_is_the_same_whatever_style_is_in_force(forecast_page):
    with matplotlib.style.context([plot.DARK, {"savefig.facecolor": "red"}]):
        assert of_a_forecast() == forecast_page


def test_a_page_is_whole(forecast_page):
    elements = Elements(forecast_page)
    assert forecast_page.startswith('<!DOCTYPE html>\n<html lang="en">')
    named = {attributes.get("name"): attributes for attributes, _ in elements.named("meta")}
    assert named["color-scheme"]["content"] == "light dark"
    assert "width=device-width" in named["viewport"]["content"]
    assert len(elements.named("title")) == 1
    assert elements.named("img")[0][0]["alt"]
    # What is wider than a phone moves in a box of its own.
    boxes = [attributes.get("class") for attributes, _ in elements.named("div")]
    assert boxes.count("wide") == len(elements.named("table")) + 1
    assert ".wide { overflow-x: auto; }" in forecast_page


def test_text_is_legible_in_both(forecast_page):
    style = forecast_page.partition("<style>")[2].partition("</style>")[0]
    named = re.findall(r"([\w-]+): light-dark\(#(\w+), #(\w+)\)", style)
    paper = [x[1:] for x in named if x[0] == "background"]
    texts = [x[1:] for x in named if x[0] == "color"]
    assert len(paper) == 2
    assert len(texts) == len(re.findall(r"[{;]\s*color:", style)) >= 4
    for mode in (0, 1):
        for text in texts:
            for behind in paper:
                pair = sorted(luminance(x[mode]) + 0.05 for x in (text, behind))
                assert pair[1] / pair[0] > LEAST_CONTRAST, (text[mode], behind[mode])
