"""The page of the evidence has the figures of its files, and the contrasts of the map are right."""

import evidence


def test_the_page_has_the_figures_of_its_files():
    assert evidence.main(write=False) == 0


def test_a_page_with_other_figures_is_a_fault(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text(f"# Evidence\n{evidence.BEGIN}\n{evidence.END}\n")
    monkeypatch.setattr(evidence, "tables", lambda: "of the runs")
    monkeypatch.setattr(evidence, "EVIDENCE", tmp_path)
    assert evidence.main(write=False) == 1
    assert "run make evidence-page" in capsys.readouterr().out
    assert evidence.main(write=True) == evidence.main(write=False) == 0


def test_the_contrasts_of_the_map(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "EVIDENCE", tmp_path)
    # effects in points at 10 epochs without augmentation, with it, and at 40; the last by seed: 7, 8, 9
    effects = [[1, 1, 1], [2, 2, 2], [3, 3, 3], [7, 8, 9]]
    for name, of in zip(evidence.MAP, effects, strict=True):
        rows = [f"none,{seed},0.5\ncbam,{seed},{0.5 + effect / 100}\n" for seed, effect in enumerate(of)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.csv").write_text("arm,seed,accuracy\n" + "".join(rows))
    longer, augmented, both = evidence.recipes("cbam")
    # t(2) = 4.303, standard deviations 0.5, 0.5 and 1
    assert longer == ["cbam", "40 epochs instead of 10", "3", "+4.00", "+2.76 to +5.24"]
    assert augmented[3:] == ["+3.00", "+1.76 to +4.24"]
    assert both[3:] == ["+4.00", "+1.52 to +6.48"]
