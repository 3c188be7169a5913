"""Documents from files: what is read, and what is refused before it takes time or memory."""

import datetime

import pytest

from whatwhere import UserError
from whatwhere.base.documents import parse_yaml, read_yaml
from whatwhere.base.limits import SETTINGS_BYTES
from whatwhere.collect.settings import read_settings
from whatwhere.networks.spec import parse_arguments
from whatwhere.training.config import read_config

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(12)
)
ENDLESS = {
    "aliases": ALIASES,
    "merge keys": MERGES,
    "itself": "a: &a [*a, 1]\n",
    "merged itself": "&a {<<: *a}\n",
    "hexadecimal": "a: 0x" + "f" * 5_000,
    "octal": "a: 0" + "7" * 5_000,
    "binary": "a: 0b" + "1" * 5_000,
    "base 60": "a: 1" + ":59" * 3_000,
    "decimal": "a: " + "9" * 5_000,
    "float": "a: 1." + "9" * 5_000,
    "key": "0x" + "f" * 5_000 + ": 1",
    "lists": "a: " + "[" * 100_000,
    "levels": "a: " + "[" * 40 + "]" * 40,
    "mappings": "a: {" * 60_000,
    "lines": "\n".join(" " * i + "a:" for i in range(400)),
    "long": "a: " + "x" * SETTINGS_BYTES,
}
NOT_OF_THEIR_TAG = {
    "bool": "a: !!bool maybe",
    "int": "a: !!int ''",
    "float": "a: !!float ''",
    "date": "a: 2020-13-45",
    "timestamp": "a: !!timestamp x",
    "binary": "a: !!binary é",
    "pairs": "a: !!omap [1]",
    "set": "a: !!set [1]",
    "key": "? [a]\n: 1",
    "open": "a: [1",
    "no alias": "a: *b",
    "two anchors": "a: [&a 1, &a 2, *a]\nb: [",
    "control": "a: \x00",
    "twice": "a: 1\nb: {c: 1, c: 2}",
    "twice in other words": "a: 1\nb: {yes: 1, true: 2}",
    "twice in another number": "{1: a, 1.0: b}",
}


@pytest.mark.parametrize("text", [*ENDLESS.values(), *NOT_OF_THEIR_TAG.values()], ids=[*ENDLESS, *NOT_OF_THEIR_TAG])
def test_yaml_without_end_or_sense_is_one_sentence(tmp_path, text, refused):
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    with refused() as caught:
        read_yaml(file)
    with pytest.raises(UserError) as of_options:
        read_config(file)
    assert str(of_options.value) == str(caught.value)
    with pytest.raises(UserError):
        read_settings(file)
    with pytest.raises(UserError, match=r"^--attention-kwargs .* cannot be read"):
        parse_arguments(text)


def test_a_file_of_any_size_is_not_read(tmp_path, refused):
    file = tmp_path / "a.yaml"
    with file.open("wb") as stream:
        stream.truncate(100 * 2**20)
    with refused():
        read_yaml(file)


def test_yaml_as_people_write_it(tmp_path):
    text = "a: &x [1, -31, 1.5e+3]\nb: *x\nc: {d: 2020-01-02, e: ~, f: on}\ng: |\n  two\n  lines\n"
    shared = [1, -31, 1500.0]
    value = {
        "a": shared, "b": shared, "c": {"d": datetime.date(2020, 1, 2), "e": None, "f": True}, "g": "two\nlines\n",
    }  # fmt: skip
    for content in (text, text.encode(), text.encode("utf-8-sig"), text.encode("utf-16")):
        assert parse_yaml(content) == value
        (tmp_path / "a.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        assert read_yaml(tmp_path / "a.yaml") == value
    assert parse_yaml("") is None
    assert parse_yaml("# nothing\n") is None


@pytest.mark.parametrize(
    ("number", "read"), [("1_0", 10), ("010", 8), ("0x1f", 31), ("0b11", 3), ("1:30", 90), ("1_0.5", 10.5)]
)
def test_numbers_that_yaml_reads_in_an_unusual_way_are_refused(number, read):
    for text in (f"a: 1\nlr: {number}", f"a: 1\n{number}: a", f"a: 1\nlr: !!float {number}"):
        with pytest.raises(ValueError, match=f"^line 2: '{number}' is no decimal number"):
            parse_yaml(text)
    assert parse_yaml(f"lr: '{number}'") == {"lr": number}
    assert parse_yaml(f"lr: {number}", any_tag=True) == {"lr": read}


@pytest.mark.parametrize("number", ["0", "-3", "+7", "100", "0.001", ".5", "5.", "1.5e-3", "1.0E+2", ".inf", "-.INF"])
def test_numbers_in_yaml(number):
    assert parse_yaml(f"lr: {number}") == {"lr": float(number.lower().replace(".inf", "inf"))}


def test_tags_that_are_not_known_are_refused_or_left_out():
    text = "a: !!python/tuple [1, 2]\nb: !own {c: 1}\n<<: {d: 1}\n"
    assert parse_yaml(text, any_tag=True) == {"a": [1, 2], "b": {"c": 1}, "<<": {"d": 1}}
    for line in text.splitlines():
        with pytest.raises(ValueError, match=r"line 1: (could not determine a constructor|merge keys)"):
            parse_yaml(line)
