"""Documents with one change each: another type, out of range, gone, renamed, nested, cut short."""

import copy
import json
import math
import random

# in place of values that the module json does not write
RAW = {"raw-1": "1e400", "raw-2": "9" * 5_000, "raw-3": "-Infinity"}
VALUES = [
    None, True, False, 0, -1, 1, 3, 0.5, 2**31, 2**63, 10**30, -(10**30), 1e308, -1e308, 1e-320, math.nan, *RAW, "",
    "3", "none", "x" * 100_000, "a.b" * 3_000, "\x1b[31mred\r\n\x00", "\u202eturned\u2066", "\ud800", "tensor:",
    "../../x", [], [[]], {}, [0, 1, 2], ["a", "a"], {"a": 1}, {"": []}, [None], {"state": {}},
]  # fmt: skip


def parts(value, at=()):
    """Return the paths of all values in a document."""
    found = [at]
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inside:
        found += parts(held, (*at, key))
    return found


def changed(document, at, change):
    """Return a document with one change at a path: ("value", NEW), ("gone",), ("renamed",), ("nested",), ("twice",)."""
    if not at:
        return change[1] if change[0] == "value" else [document]
    document = copy.deepcopy(document)
    holder = document
    for key in at[:-1]:
        holder = holder[key]
    kind, key = change[0], at[-1]
    if kind == "value":
        holder[key] = change[1]
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


def written(document):
    """Return a document as JSON, with numbers that the module json does not write."""
    text = json.dumps(document)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def damaged(content, count, seed, finish=lambda document: document):
    """Yield (what was changed, the file's new bytes), `count` times, from the bytes of a JSON file.

    `finish` is called with each changed document, such as to write its checksum anew.
    """
    document, drawn = json.loads(content), random.Random(seed)
    changes = [("value", value) for value in VALUES] + [("gone",), ("renamed",), ("nested",), ("twice",)]
    everywhere = parts(document)
    of_bytes = [
        ("cut", content[: drawn.randrange(len(content))]),
        ("cut", content[:1]),
        ("empty", b""),
        ("BOM", b"\xef\xbb\xbf" + content),
        ("UTF-16", content.decode().encode("utf-16")),
        ("no text", bytes(range(256))),
        ("deep", b"[" * 100_000),
        ("deep too", b'{"a":' * 100_000),
        ("twice", content.rstrip()[:-1] + b"," + content.lstrip()[1:]),
    ]
    for number in range(count):
        if number % 20 == 19:
            yield of_bytes[number // 20 % len(of_bytes)]
            continue
        at, change = drawn.choice(everywhere), drawn.choice(changes)
        new = changed(document, at, change)
        yield f"{at}: {change}"[:200], written(finish(new))
