"""Documents with one change each: another type, out of range, gone, renamed, nested, moved, cut short."""

import copy
import csv
import io
import json
import math
import random

import yaml

# in place of values that the module json does not write
RAW = {"raw-1": "1e400", "raw-2": "9" * 5_000, "raw-3": "-Infinity"}
VALUES = [
    None, True, False, 0, -1, 1, 3, 0.5, 2**31, 2**63, 10**30, -(10**30), 1e308, -1e308, 1e-320, math.nan, *RAW, "",
    "3", "none", "x" * 100_000, "a.b" * 3_000, "\x1b[31mred\r\n\x00", "\u202eturned\u2066", "\ud800", "tensor:",
    "../../x", [], [[]], {}, [0, 1, 2], ["a", "a"], {"a": 1}, {"": []}, [None], {"state": {}},
]  # fmt: skip
CHANGES = [("value", value) for value in VALUES]
# these more often, because what they leave looks most like a sound document
CHANGES += 3 * [("gone",), ("renamed",), ("nested",), ("twice",), ("more",), ("swapped",)]


def parts(value, at=()):
    """Return the paths of all values in a document."""
    found = [at]
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inside:
        found += parts(held, (*at, key))
    return found


def by_field(paths):
    """Group paths by the field that they are of: lists and tables have many, and each field is to be changed."""
    fields = {}
    for path in paths:
        # the first of a list may be a head
        fields.setdefault(tuple(min(key, 1) if isinstance(key, int) else key for key in path), []).append(path)
    return list(fields.values())


def changed(document, at, change):
    """Return a document with one change at a path, as in CHANGES."""
    if not at:
        return change[1] if change[0] == "value" else [document]
    document = copy.deepcopy(document)
    holder = document
    for key in at[:-1]:
        holder = holder[key]
    kind, key = change[0], at[-1]
    if kind == "value":
        holder[key] = change[1]
    elif kind == "more":
        number = isinstance(holder[key], (int, float))
        holder[key] = holder[key] + 1 if number else f"{holder[key]}x"
    elif kind == "swapped":
        keys = list(holder if isinstance(holder, dict) else range(len(holder)))
        other = keys[keys.index(key) - 1]
        holder[key], holder[other] = holder[other], holder[key]
    elif kind == "nested":
        holder[key] = [holder[key]]
    elif kind == "gone":
        del holder[key]
    elif isinstance(holder, dict):
        held = holder.pop(key) if kind == "renamed" else copy.deepcopy(holder[key])
        holder[f"{key}\x1b"] = held
    else:
        holder.insert(key, copy.deepcopy(holder[key]))
    return document


def read(suffix, content):
    """Return the document in a file: JSON, JSON lines, CSV, YAML, or the header of safetensors."""
    if suffix == ".safetensors":
        return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = content.decode()
    if suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    if suffix == ".csv":
        return list(csv.reader(io.StringIO(text, newline="")))
    return yaml.safe_load(text) if suffix == ".yaml" else json.loads(text)


def written(suffix, document, content):
    """Return the bytes of a file with a changed document; `content` are those that it was read from."""
    if suffix == ".safetensors":
        header = as_json(document)
        return len(header).to_bytes(8, "little") + header + content[8 + int.from_bytes(content[:8], "little") :]
    if suffix == ".jsonl" and isinstance(document, list):
        return b"".join(as_json(line) + b"\n" for line in document)
    if suffix == ".csv" and isinstance(document, list):
        target = io.StringIO()
        rows = [row if isinstance(row, list) else [row] for row in document]
        csv.writer(target).writerows([[_cell(cell) for cell in row] for row in rows])
        return target.getvalue().encode("utf-8", "surrogatepass")
    if suffix == ".yaml":
        return yaml.safe_dump(document, sort_keys=False).encode("utf-8", "surrogatepass")
    return as_json(document)


def as_json(document):
    """Return a document as JSON, with numbers that the module json does not write."""
    text = json.dumps(document)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def _cell(value):
    return RAW.get(value, value) if isinstance(value, str) else json.dumps(value)


def damaged(suffix, content, count, seed):
    """Yield (what was changed, the file's new bytes), `count` times, from the bytes of a file."""
    document, drawn = read(suffix, content), random.Random(seed)
    everywhere = by_field(parts(document))
    of_bytes = [
        ("one byte", content[:1]),
        ("empty", b""),
        ("BOM", b"\xef\xbb\xbf" + content),
        ("UTF-16", content.decode("latin-1").encode("utf-16")),
        ("no text", bytes(range(256))),
        ("deep", b"[" * 100_000),
        ("deep too", b'{"a":' * 100_000),
        ("twice", content.rstrip()[:-1] + b"," + content.lstrip()[1:]),
    ]
    for _ in range(count):
        if drawn.random() < 0.1:
            cut = drawn.randrange(len(content))
            yield drawn.choice([*of_bytes, (f"cut at {cut}", content[:cut])])
            continue
        at, change = drawn.choice(drawn.choice(everywhere)), drawn.choice(CHANGES)
        yield f"{at}: {change}"[:200], written(suffix, changed(document, at, change), content)
