"""`whatwhere audit`: what it prints, and its exit status. See tests/comparison/test_audit.py."""

import json

import pytest

from comparisons import Comparisons, WithoutPictures
from pictures import make_folder
from whatwhere.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        compared = Comparisons(make_folder(folder / "photos"), folder / "out")
        compared("none,se", seeds=2, backbone="resnet8")
    return compared


@pytest.fixture
def audit(whatwhere, compared, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(compared.out.parent / "cache"))
    monkeypatch.setattr(RunFolder, "draw", WithoutPictures.draw)
    return lambda *arguments: whatwhere("audit", compared.out, *arguments)


def test_the_outcome_is_printed_and_is_the_exit_status(audit, compared, tmp_path):
    status, out, err = audit("--arm", "se", "--seed", 1, "--out", tmp_path / "kept")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].startswith("SHA-256 of the design at first: ")
    published = [line.rpartition(" ")[2] for line in compared.lines if line.startswith("SHA-256 of the design: ")]
    assert published == [lines[0].rpartition(" ")[2]]
    assert lines[1:3] == ["the files agree: 4 runs, the table and the verdict", "drawn: se, seed 1"]
    assert lines[3].startswith("training se, seed 1 again, in 1 thread; there it took ")
    assert lines[3].endswith("; compared to the last bit")
    assert [line.split()[-1] for line in lines if line.startswith(" accuracy")] == ["equal"]
    assert lines[-1] == (
        "passed: se, seed 1, trained again, has the same weights to the last bit and the same figures to the last digit"
    )
    # its training is kept and not repeated
    status, out, _ = audit("--arm", "se", "--seed", 1, "--out", tmp_path / "kept", "--json")
    found = json.loads(out)
    assert (status, found["passed"], found["sentences"]) == (0, True, lines[-1:])
    assert [(run["arm"], run["seed"]) for run in found["runs"]] == [("se", 1)]


def test_a_changed_figure_is_printed_with_exit_status_1(audit, compared):
    table = compared.out / "results.csv"
    text = table.read_text()
    line = next(line for line in text.splitlines() if line.startswith("se,1,"))
    accuracy = line.split(",")[2]
    other = f"{float(accuracy) + 0.001!r}"
    table.write_text(text.replace(line, line.replace(accuracy, other, 1)))
    try:
        status, out, err = audit()
        assert (status, err) == (1, "")
        assert out.splitlines()[-2:] == [
            f"results.csv says {other} for accuracy of se, seed 1, result.json gives {accuracy}",
            f"failed: the files of {str(compared.out)!r} do not agree; nothing was trained again",
        ]
        table.write_text("arm,seed,accuracy\n" + "".join(f"se,{number},0.5\n" for number in range(30)))
        assert audit()[1].splitlines()[-2].endswith(" others; all with --json")
    finally:
        table.write_text(text)


@pytest.mark.parametrize(
    "arguments", [("--data", ""), ("--pretrained", ""), ("--data-dir", ""), ("--runs", "0"), ("--attention", "a,a")]
)
def test_bad_options_get_a_sentence(audit, arguments):
    status, out, err = audit(*arguments)
    assert (status, out) == (2, "")
    assert arguments[0] in err
