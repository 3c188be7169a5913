import json
import re
import shutil
import subprocess

import pytest

from whatwhere.report import write_page

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]

# opens a page in a frame of a given width and says what sticks out of it, what it loaded, and what its charts show
WRAPPER = """<!DOCTYPE html><meta charset="utf-8">
<iframe width="WIDTH" height="900" src="PAGE"></iframe><pre></pre>
<script>
document.querySelector("iframe").onload = event => {
  const view = event.target.contentWindow, page = view.document;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const box = element => element.getBoundingClientRect();
  const sticksOut = element => !element.closest(".scroll table") && box(element).right > view.innerWidth;
  const plot = page.querySelector(".pairs .plot");
  const middle = mark => (box(mark).left + box(mark).width / 2 - box(plot).left) / box(plot).width;
  document.querySelector("pre").textContent = JSON.stringify({
    width: view.innerWidth,
    scrollWidth: page.documentElement.scrollWidth,
    sticksOut: [...page.querySelectorAll("body *")].filter(sticksOut).map(element => element.outerHTML.slice(0, 200)),
    loaded: view.performance.getEntriesByType("resource").map(entry => entry.name),
    wrapped: [...page.querySelectorAll(".pairs .values span, .pairs-of-words td bdi")]
      .filter(element => element.getClientRects().length > 1 || element.offsetHeight > 24)
      .map(element => element.textContent),
    small: [...page.querySelectorAll("svg text")].filter(text => box(text).height < 11).length,
    marks: [".dot", ".dot ~ .dot", ".mean", ".interval"].map(mark => middle(plot.querySelector(mark))),
    grid: [box(plot.querySelector("use")).height, box(plot).height],
  });
};
</script>"""


def opened(path, width, tmp_path):
    wrapper = tmp_path / f"wrapper{width}.html"
    wrapper.write_text(WRAPPER.replace("WIDTH", str(width)).replace("PAGE", path.name), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--enable-logging=stderr"]
    run = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<pre>(\{.*\})</pre>", run.stdout, re.DOTALL)
    assert found, run.stdout[-2000:] + run.stderr[-2000:]
    assert "CONSOLE" not in run.stderr, run.stderr
    return json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def stretched(content):
    """Longer names and more classes than a narrow page has room for."""
    renamed = {arm["arm"]: f"{arm['arm']}_{'x' * 90}" for arm in content["judgement"]["arms"]}
    text = json.dumps(content)
    for old, new in renamed.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    content = json.loads(text)
    row = content["per_class"]["rows"][0]
    content["per_class"]["rows"] = [{**row, "class": f"{'y' * 70}{number}"} for number in range(60)]
    content["title"] = "z" * 200
    content["settings"] = [["recipe", [["option" * 20, "value" * 60]]]]
    return content


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("case", ["everything", "figures_only", "stretched"])
def test_a_page_fits_a_screen_and_loads_nothing(tmp_path, width, case, everything, figures_only):
    everything["settings"][0][1] += [["learning rates searched", "none"], ["model", "cbam_resnext29_32x4d"]]
    contents = {"everything": everything, "figures_only": figures_only, "stretched": stretched(everything)}
    path = tmp_path / "report.html"
    write_page(path, contents[case])
    found = opened(path, width, tmp_path)
    assert found["width"] == width
    assert found["scrollWidth"] <= width
    assert found["sticksOut"] == []
    assert found["loaded"] == []
    assert found["small"] == 0
    if width == 1280 and case != "stretched":
        assert found["wrapped"] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_marks_are_drawn_where_they_were_put(tmp_path, width, figures_only, arm):
    only = arm("a", (-1.0, 3.0), verdict="helps", interval_95=(0.0, 3.0), deciding_interval=(-0.5, 2.5))
    figures_only["judgement"] |= {"arms": [only], "margin": 1.0}
    path = tmp_path / "report.html"
    write_page(path, figures_only)
    found = opened(path, width, tmp_path)
    # the axis goes from -1.16 to 3.16: -1, 3, their mean 1, the middle of the interval 1.5
    assert found["marks"] == pytest.approx([0.037, 0.963, 0.5, 0.6157], abs=0.001)
    drawn, height = found["grid"]
    assert drawn == pytest.approx(height, abs=1)
