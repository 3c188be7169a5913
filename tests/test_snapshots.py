import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_snapshot_belongs_to_a_test(collected_tests):
    """syrupy itself looks for unused snapshots only where no test is left out by -m, as `make test` does."""
    unused = []
    for path in TESTS.rglob("__snapshots__/*.ambr"):
        file = path.parents[1] / f"{path.stem}.py"
        assert file.exists(), f"{path} has no test file; delete it"
        # only those that this run has read
        if file in collected_tests:
            names = re.findall(r"^# name: (.*)$", path.read_text(), re.MULTILINE)
            # a test with several messages numbers them: NAME, NAME.1
            known = collected_tests[file]
            unused += [name for name in names if name not in known and re.sub(r"\.\d+$", "", name) not in known]
    assert not unused, "run `make snapshots`"
