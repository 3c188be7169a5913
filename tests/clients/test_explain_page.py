"""The page of `whatwhere explain`, driven in Chromium: by its controls, by keys, and on a phone."""

import json
import shutil

import pytest
import torch

from client import wanted
from whatwhere import create_model
from whatwhere.explain import Batch, explain
from whatwhere.report.explanation import write_explanation

webdriver = wanted("selenium.webdriver")
keys = wanted("selenium.webdriver.common.keys").Keys
pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs chromium and chromedriver"
)
HOSTILE = "<img src=x onerror=document.title='run'>\"'&.png"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two networks, five images; the first layer is off."""
    with_cbam = create_model("cbam_resnext11_8x8d", num_classes=3, seed=0, attention_kwargs={"start": "identity"})
    with torch.no_grad():
        for stage in (2, 3):
            with_cbam.get_submodule(f"layer{stage}.0.attention").mix.fill_(1.0)
    images = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, names=[f"{n} {HOSTILE}" for n in range(9)], labels=["cat", "dog", "elk"] * 3)
    networks = {"with cbam": with_cbam, "plain": create_model("resnext11_8x8d", num_classes=3, seed=0)}
    path = tmp_path_factory.mktemp("page") / "page.html"
    classes = ("cat", "dog", HOSTILE)
    write_explanation(
        path,
        [
            explain(model, [batch], classes=classes, network=name, most_shown=5, sampled=2)
            for name, model in networks.items()
        ],
    )
    return path


@pytest.fixture
def opened(page, tmp_path):
    """The page in a browser, of any width; at the end there was no error, and nothing was loaded."""
    drivers = []

    def run(width=1200):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/{width}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        driver = webdriver.Chrome(options=options, service=service)
        drivers.append(driver)
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(page.as_uri())
        return driver

    yield run
    for driver in drivers:
        errors, requests = driver.get_log("browser"), driver.get_log("performance")
        driver.quit()
        assert errors == []
        messages = [json.loads(entry["message"])["message"] for entry in requests]
        sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        # the browser itself asks for its own first page
        urls = [one["request"]["url"] for one in sent if one["documentURL"] == page.as_uri()]
        assert page.as_uri() in urls
        assert [url for url in urls if url != page.as_uri() and not url.startswith("data:")] == []


def shown(driver, selector):
    return [one.text for one in driver.find_elements("css selector", selector)]


def settled(driver, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(driver, 10).until(lambda driver: condition())


def captions(driver):
    return [" | ".join(text.splitlines()) for text in shown(driver, "#panels figcaption")]


def pixels(driver, number):
    """The colours of a panel, as one text."""
    return driver.execute_script(
        "return document.querySelectorAll('#panels figure > canvas')[arguments[0]].toDataURL()", number
    )


def test_the_slider_goes_through_the_layers(opened):
    driver = opened()
    settled(driver, lambda: len(captions(driver)) == 5)
    gate = "spatial gate | layer{}.0.attention, {} x {} places, a = {}".format
    assert captions(driver)[0].startswith("with cbam | ")
    assert captions(driver)[1] == gate(3, 8, 8, "1.00")
    assert captions(driver)[3].startswith("plain | ")
    slider = driver.find_element("id", "layer")
    assert slider.get_attribute("aria-valuetext") == "layer3.0.attention"
    before = pixels(driver, 1)
    slider.send_keys(keys.ARROW_LEFT)
    settled(driver, lambda: captions(driver)[1] == gate(2, 16, 16, "1.00"))
    assert pixels(driver, 1) != before
    slider.send_keys(keys.HOME)
    settled(driver, lambda: captions(driver)[1] == gate(1, 32, 32, "0.00"))
    assert slider.get_attribute("aria-valuetext") == "layer1.0.attention"
    assert "Says little: the gate is off." in shown(driver, "#panels .doubt")
    # a map that says little is grey over the photo: only one that is not has colours of its own
    driver.find_element("id", "opacity").send_keys(keys.END)
    settled(driver, lambda: shown(driver, "#opacity-value") == ["100 %"])
    colours = """const canvas = document.querySelectorAll('#panels figure > canvas')[1];
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let most = 0;
        for (let n = 0; n < data.length; n += 4) most = Math.max(most, Math.abs(data[n] - data[n + 2]));
        return most;"""
    settled(driver, lambda: driver.execute_script(colours) == 0)
    slider.send_keys(keys.END)
    settled(driver, lambda: driver.execute_script(colours) > 50)


def test_opacity_and_range(opened):
    driver = opened()
    settled(driver, lambda: len(captions(driver)) == 5)
    opacity, image = driver.find_element("id", "opacity"), pixels(driver, 0)
    opacity.send_keys(keys.HOME)
    settled(driver, lambda: pixels(driver, 1) == image)
    opacity.send_keys(keys.END)
    settled(driver, lambda: pixels(driver, 1) != image)
    assert opacity.get_attribute("aria-valuetext") == "100 per cent"
    before = shown(driver, "#panels .scale")[0]
    driver.find_element("id", "own-range").send_keys(keys.SPACE)
    settled(driver, lambda: shown(driver, "#panels .scale")[0] != before)
    low, high = map(float, shown(driver, "#panels .scale")[0].split())
    least, most = map(float, before.split())
    assert least <= low <= high <= most


def test_images_by_keys_and_what_is_said_of_them(opened):
    driver = opened()
    settled(driver, lambda: len(captions(driver)) == 5)
    assert shown(driver, "#named") == [f"0 {HOSTILE}, of the class cat"]
    before, radio = pixels(driver, 0), driver.switch_to.active_element
    radio.send_keys(keys.TAB)
    driver.switch_to.active_element.send_keys(keys.ARROW_RIGHT)
    settled(driver, lambda: shown(driver, "#named") == [f"1 {HOSTILE}, of the class dog"])
    settled(driver, lambda: pixels(driver, 0) != before)
    assert driver.find_element("css selector", "input[name=picture]:checked").get_attribute("value") == "1"
    said = driver.find_element("id", "spoken").get_attribute("textContent")
    assert "spatial gate, layer3.0.attention" in said
    assert "Grad-CAM for" in said
    assert all(one.get_attribute("aria-label") for one in driver.find_elements("css selector", "canvas[role=img]"))
    # names are text, and run nothing
    assert driver.title == "What with cbam looks at"
    assert driver.find_elements("css selector", "img[onerror]") == []


def test_on_a_phone_nothing_sticks_out(opened):
    driver = opened(390)
    settled(driver, lambda: len(captions(driver)) == 5)
    sticks_out = """return [...document.querySelectorAll('body *')].filter(element =>
        !element.closest('.scroll table, .hidden') && element.getBoundingClientRect().right > innerWidth
        ).map(element => element.outerHTML.slice(0, 200))"""
    for details in driver.find_elements("css selector", "summary"):
        details.click()
    assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    assert driver.execute_script(sticks_out) == []
    # two maps side by side can be compared
    tops = driver.execute_script(
        "return [...document.querySelectorAll('#panels .maps:first-child canvas[role=img]')]"
        ".map(canvas => Math.round(canvas.getBoundingClientRect().left))"
    )
    assert len(set(tops)) == 2


def test_the_bars_are_the_channels(opened):
    driver = opened()
    settled(driver, lambda: len(captions(driver)) == 5)
    labels = [one.get_attribute("aria-label") for one in driver.find_elements("css selector", "#bars svg")]
    assert len(labels) == 1
    heights = driver.execute_script(
        "return [...document.querySelectorAll('#bars rect')].map(bar => +bar.getAttribute('height'))"
    )
    assert len(heights) == 48
    assert labels[0].startswith(f"{sum(height > 0.5 for height in heights)} of these 48 channels are open")
