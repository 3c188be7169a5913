import io
import json
import subprocess
import sys

import pytest
import typer

from image_files import cut, fill, tiff
from whatwhere.cli.check import check_command
from whatwhere.cli.screen import TerminalScreen


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_tables_and_soundness(tmp_path, capsys):
    root = fill(tmp_path / "data", "cat", "dog")
    check_command(str(root))
    printed = capsys.readouterr()
    assert "6 images of 2 classes" in printed.out
    assert "The data are sound." in printed.out
    assert "Not counted" not in printed.out
    # a bar is for terminals
    assert printed.err == ""
    cut(root / "cat" / "1.png")
    with pytest.raises(typer.Exit, match="1"):
        check_command(str(root))
    printed = capsys.readouterr().out
    assert "error" in printed
    assert "  cat/1.png" in printed
    assert "not sound" in printed
    # the head says 6, and the total 5
    assert "Not counted, as they cannot be used: 1 of the 6 images." in printed


def test_json(tmp_path, capsys):
    root = fill(tmp_path / "data", "cat", "dog\udcff")
    (root / "cat" / "\udcfe.png").touch()
    with pytest.raises(typer.Exit, match="1"):
        check_command(str(root), json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["sound"] is False
    assert result["counts"] == {"all": {"cat": 3, "dog\\xff": 3}}
    assert result["findings"][0] == {
        "severity": "error",
        "kind": "empty",
        "message": "1 file of 0 bytes; replace, or leave out with --skip-bad",
        "paths": ["cat/\\xfe.png"],
        "cure": "replace",
    }


def test_options_and_errors(tmp_path, capsys, refused):
    root = fill(tmp_path / "data", "x", count=6)
    (root / "list.csv").write_text("a,b\n" + "\n".join(f"x/{i}.png,{i % 2}" for i in range(6)))
    check_command(str(root / "list.csv"), path_column="a", label_column="b")
    with refused():
        check_command("cifar10", data_dir=str(tmp_path))
    assert "list.csv: 6 images" in capsys.readouterr().out


def test_the_bar_goes_to_the_terminal_of_standard_error(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with TerminalScreen(to_stderr=True) as screen:
        screen.progress("examining images", 3, 7)
    assert "3/7" in sys.stderr.getvalue()


def test_pillow_logs_nothing_beside_the_report(tmp_path):
    tiff(fill(tmp_path / "data", "a", "b") / "a" / "x.tif", 7)
    command = [sys.executable, "-m", "whatwhere", "check", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "1 file with the beginning of an image" in done.stdout
