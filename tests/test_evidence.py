"""The page of the evidence has the figures of its files, and the contrasts of the map are right."""

import json
import shutil

import evidence
from comparisons import design_of
from whatwhere.experiment import Results


def test_the_page_has_the_figures_of_its_files():
    assert evidence.main(write=False) == 0


def test_a_page_with_other_figures_is_a_fault(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text(f"# Evidence\n{evidence.BEGIN}\n{evidence.END}\n")
    monkeypatch.setattr(evidence, "tables", lambda: "of the runs")
    monkeypatch.setattr(evidence, "EVIDENCE", tmp_path)
    assert evidence.main(write=False) == 1
    assert "run make evidence-page" in capsys.readouterr().out
    assert evidence.main(write=True) == evidence.main(write=False) == 0


def test_a_comparison_is_judged_from_its_folder_as_from_its_table(whatwhere, tmp_path):
    """Its runs differ in several settings, such as the epochs of the control; its table knows the arms."""
    folder = tmp_path / "fashion"
    shutil.copytree(evidence.EVIDENCE / "fashion", folder)
    told = []
    for number, path in enumerate((folder, folder / "results.csv")):
        status, out, _ = whatwhere("verdict", path, "--json", "--out", tmp_path / f"{number}.html")
        assert status == 0
        told.append(json.loads(out)["judgement"])
    assert told[0] == told[1]
    own = json.loads((folder / "verdict.json").read_text())["judgement"]
    assert [arm["verdict"] for arm in told[0]["arms"]] == [arm["verdict"] for arm in own["arms"]]


def test_the_contrasts_of_the_map():
    # effects in points at 10 epochs without augmentation, with it, and at 40; the last by seed: 7, 8, 9
    sets = []
    for name, effects in zip(evidence.MAP, [[1, 1, 1], [2, 2, 2], [3, 3, 3], [7, 8, 9]], strict=True):
        results = Results()
        for seed, effect in enumerate(effects):
            results.add("none", seed, {"accuracy": 0.5})
            results.add("cbam", seed, {"accuracy": 0.5 + effect / 100})
        sets.append(evidence.Set(name, design_of(), None, results))
    longer, augmented, both = evidence.recipes(sets, "cbam")
    # standard deviations 0.5, 0.5 and 1; t(2) = 4.303 at 97.5 %, and 10.886 at 100 - 2.5 / 6 %, of six lines
    assert longer == ["cbam, paper start", "40 epochs instead of 10", "3", "+4.00", "+2.76 to +5.24", "+0.86 to +7.14"]
    assert augmented[3:] == ["+3.00", "+1.76 to +4.24", "-0.14 to +6.14"]
    assert both[3:] == ["+4.00", "+1.52 to +6.48", "-2.28 to +10.28"]


def test_arms_are_called_by_their_start():
    fresh, loaded = design_of(), design_of(options={**design_of().options, "pretrained": "imagenet"})
    names = [evidence.named(arm, design) for design in (fresh, loaded) for arm in ("cbam", "static-cbam", "short")]
    assert names == [
        *("cbam, paper start", "placebo of cbam, paper start", "short"),
        *("cbam, identity start", "placebo of cbam, identity start", "short"),
    ]
    assert evidence.named("cbam-identity", fresh) == "cbam, identity start"
    assert evidence.named("cbam-paper", loaded) == "cbam, paper start"
