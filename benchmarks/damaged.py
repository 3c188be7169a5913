"""Which damages of image files no decoder notices, by format.

    python benchmarks/damaged.py [--files 350] > damaged.md

Files of each format are made, in its usual forms, and damaged once at a random place: cut off, one byte changed, or a
run of at most 199 zeros. `tests/data/test_damaged.py` holds the doctor and training to the same answer on these files.
"Without effect" are files that decode to the pixels of the whole file: the damage lies in what nobody reads.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from damaged_files import KINDS, damaged_file
from whatwhere.data.doctor.probe import read_entry
from whatwhere.data.images import FORMATS, decode, open_image
from whatwhere.data.sources.source import Sample, Source


def row(kind, num_files):
    """Return how many damaged files of a format are refused, have no effect, are a warning, or are not noticed."""
    draw, counts = random.Random(kind), dict.fromkeys(("refused", "without effect", "warned", "not noticed"), 0)
    with tempfile.TemporaryDirectory() as folder:
        sample = Sample("image", "cat", None)
        source = Source("data", Path(folder), (sample,))
        file = Path(folder) / sample.path
        for index in range(num_files):
            whole, damaged, _ = damaged_file(kind, index, draw)
            file.write_bytes(whole)
            with open_image(file) as image:
                pixels = decode(image)[0].tobytes()
            file.write_bytes(damaged)
            entry = read_entry(source, sample)
            if entry.fault:
                counts["refused"] += 1
                continue
            with open_image(file) as image:
                is_same = decode(image)[0].tobytes() == pixels
            counts["without effect" if is_same else "warned" if entry.flat_end else "not noticed"] += 1
    return f"| {kind} | {num_files} | " + " | ".join(map(str, counts.values())) + " |"


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=350)
    arguments = parser.parse_args()
    print("| format | files | refused | without effect | a warning | not noticed |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in KINDS:
        if kind in FORMATS:
            print(row(kind, arguments.files))


if __name__ == "__main__":
    main()
