"""Any value, name or error becomes one short printable line in a message."""

import ast
import collections
import csv
import enum
import json
import pickle
import re
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import whatwhere
from image_files import save
from whatwhere import UserError
from whatwhere.base.tables import Table, rich_tables, say, tell, text
from whatwhere.base.words import brief, cause, few, printable, short, suggest
from whatwhere.comparison.arms import Arm, parse_arms
from whatwhere.comparison.design import read_design
from whatwhere.comparison.planning import Request, asked_for
from whatwhere.data.sources.find import find_source
from whatwhere.data.split import prepare
from whatwhere.experiment import compare, judge, read_results
from whatwhere.networks.convert import convert_weights
from whatwhere.statistics.history import read_record
from whatwhere.training.bundle import load_bundle
from whatwhere.training.config import read_config


class Hostile:
    """Raises at every question."""

    def __getattr__(self, name):
        raise RuntimeError("two\nlines")

    def __repr__(self):
        raise RuntimeError("two\nlines")


class Spread:
    def __repr__(self):
        return "Spread(\n  1,\n)"


class Colour(str, enum.Enum):
    RED = "red"


def itself():
    values = []
    values.append(values)
    return values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.zeros(1, 3, 224, 224), "a tensor of shape (1, 3, 224, 224)"),
        (torch.tensor(1.0), "a tensor of shape ()"),
        (nn.Parameter(torch.zeros(2)), "a tensor of shape (2,)"),
        (numpy.zeros((2, 3)), "an array of shape (2, 3)"),
        ("cbma", "'cbma'"),
        ("two\nlines", "'two\\nlines'"),
        ("it's", '"it\'s"'),
        ("x" * 80, repr("x" * 80)),
        ("x" * 10_000, f"'{'x' * 76}...'"),
        (0.5, "0.5"),
        (None, "None"),
        ((224, 224), "(224, 224)"),
        ((3,), "(3,)"),
        ([], "[]"),
        ({}, "{}"),
        ({"pools": ["avg"]}, "{'pools': ['avg']}"),
        ([1, torch.zeros(5)], "[1, a tensor of shape (5,)]"),
        (["x" * 200] * 3, f"['{'x' * 36}...', ... 2 more]"),
        (10**5_000, "an int"),
        (nn.Sequential(nn.ReLU()), "a Sequential"),
        (nn.ReLU(), "ReLU()"),
        (Hostile(), "a Hostile"),
        (Spread(), "a Spread"),
        (Colour.RED, "'red'"),
        (collections.OrderedDict(a=1), "{'a': 1}"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_in_a_sentence(value, expected):
    assert brief(value) == expected


HOSTILE = {
    "tensor": lambda: torch.zeros(64, 64, 8),
    "text": lambda: "long\n" * 2_000,
    "unprintable": lambda: "\U0010ffff\u2028\x00" * 3_000,
    "dict": lambda: {f"key{index}\n": "value" * 100 for index in range(10_000)},
    "list": lambda: [[[["x" * 1_000] * 50] * 50] * 50] * 10_000,
    "tensors": lambda: [torch.zeros(100, 100)] * 10_000,
    "itself": itself,
    "hostile": Hostile,
    "spread": Spread,
    "module": lambda: nn.Sequential(*[nn.Linear(3, 3) for _ in range(100)]),
    "number": lambda: 10**5_000,
}
hostile = pytest.mark.parametrize("kind", HOSTILE)


@hostile
def test_any_value_is_one_short_line(kind):
    text = brief(HOSTILE[kind]())
    assert text.isprintable()
    assert len(text) <= 130


@hostile
def test_looking_for_names_near_to_anything_finds_none(kind):
    assert suggest(HOSTILE[kind](), ["cbam", "se"]) == ""


def test_a_name_keeps_its_two_ends():
    assert short("cbam") == "cbam"
    assert short("a" * 41 + "b" * 40) == "a" * 39 + "..." + "b" * 38
    assert short("\x1b[31mred\n") == r"\x1b[31mred\n"


def test_of_a_list_stand_the_first_names():
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert few(["a", "b"], between=" and ") == "a and b"
    assert few([]) == ""
    long = few(["x" * 10_000] * 5_000, 5_000)
    assert len(long) <= 320
    assert long.endswith(" and 4,998 more")


def test_what_another_library_says_is_one_line():
    assert cause(ValueError("two\n  lines\x1b[31m")) == r"two lines\x1b[31m"
    assert cause(KeyError()) == "KeyError"
    assert len(cause(ValueError("x" * 10_000))) == 200


def test_a_refusal_is_a_line_whatever_stands_in_it():
    refusal = UserError("a\nb\x1b[31m" + "x" * 10_000 + "; mend it")
    assert str(refusal).startswith(r"a\nb\x1b[31mx")
    assert str(refusal).endswith("x; mend it")
    assert len(str(refusal)) == 300
    assert str(pickle.loads(pickle.dumps(refusal))) == str(refusal)


CALLS = {
    "the input of cost": lambda value: whatwhere.cost(nn.Conv2d(3, 3, 1), value),
    "the batch of cost": lambda value: whatwhere.cost(nn.Conv2d(3, 3, 1), (3, 8, 8), batch_size=value),
    "a name": whatwhere.create_model,
    "a pattern": whatwhere.list_models,
    "classes": lambda value: whatwhere.create_model("resnet18", num_classes=value),
    "weights": lambda value: whatwhere.create_model("resnet18", pretrained=value),
    "attention_kwargs": lambda value: whatwhere.create_model("cbam_resnet18", attention_kwargs={"reduction": value}),
    "an unknown argument": lambda value: whatwhere.create_model("cbam_resnet18", attention_kwargs={"odd": value}),
    "a width": lambda value: whatwhere.create_model("resnet18", width_factor=value),
    "a stem": lambda value: whatwhere.create_model("resnet18", stem=value),
    "stages": lambda value: whatwhere.create_model("resnet18", widths=value),
    "dilation": lambda value: whatwhere.create_model("resnet18", replace_stride_with_dilation=value),
    "a rate": lambda value: whatwhere.create_model("resnet18", drop_rate=value),
    "a seed": lambda value: whatwhere.create_model("resnet18", seed=value),
    "a norm": lambda value: whatwhere.create_model("resnet18", norm_layer=value),
    "a reduction": lambda value: whatwhere.CBAM(64, reduction=value),
    "pools": lambda value: whatwhere.CBAM(64, pools=value),
    "channels": whatwhere.CBAM,
    "an attention": lambda value: whatwhere.attend(whatwhere.create_model("resnext11_8x8d"), value),
    "places": lambda value: whatwhere.attend(whatwhere.create_model("resnext11_8x8d"), "se", at=value),
    "kwargs to attend": lambda value: whatwhere.attend(
        whatwhere.create_model("resnext11_8x8d"), "se", attention_kwargs={"odd": value}
    ),
    "arms": lambda value: compare(lambda *_: 0.5, arms=value, seeds=2),
    "an arm": lambda value: compare(lambda *_: 0.5, arms=["none", value], seeds=2),
    "a baseline": lambda value: compare(lambda *_: 0.5, arms=["none", "cbam"], seeds=2, baseline=value),
    "seeds": lambda value: compare(lambda *_: 0.5, arms=["none", "cbam"], seeds=value),
    "the seed of a comparison": lambda value: compare(lambda *_: 0.5, arms=["none", "cbam"], seeds=[value]),
    "a metric": lambda value: compare(lambda *_: 0.5, arms=["none", "cbam"], seeds=2, metric=value),
    "a margin": lambda value: compare(lambda *_: 0.5, arms=["none", "cbam"], seeds=2, margin=value),
    "a figure": lambda value: compare(lambda *_: value, arms=["none", "cbam"], seeds=2),
    "a figure by name": lambda value: compare(lambda *_: {"accuracy": value}, arms=["none", "cbam"], seeds=2),
    "sizes": lambda value: whatwhere.cost(nn.Conv2d(3, 3, 1), [value] * 5_000),
    "a model": lambda value: whatwhere.cost(value, (3, 8, 8)),
    "a model to attend": lambda value: whatwhere.attend(value, "se"),
}


# any text is a pattern; a reduction larger than the number of channels leaves one channel
TAKEN = {
    ("a pattern", "text"),
    ("a pattern", "unprintable"),
    ("a reduction", "number"),
    ("attention_kwargs", "number"),
}


@hostile
@pytest.mark.parametrize("call", CALLS)
def test_a_refusal_is_one_line_of_bounded_length(call, kind):
    value = HOSTILE[kind]()
    if (call, kind) in TAKEN:
        CALLS[call](value)
        return
    with pytest.raises(UserError) as refusal:
        CALLS[call](value)
    sentence = str(refusal.value)
    assert sentence.isprintable()
    assert len(sentence) <= 420


# names that a user's tables and files may hold
NAMES = {
    "long": "x" * 10_000,
    "of several lines": "two\nlines\r\n" * 1_000,
    "of escapes": "\x1b[31mred\x1b[0m" * 1_000,
    "turned": "\u202egnp.\u2028" * 1_000,
    "not long": "\x1b[31mred\u2028\x85",
}


def many(name, count=5_000):
    return [f"{name[:250]}{number}" for number in range(count)]


def table(folder, *rows):
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder / "table.csv"


def runs(*, arm="cbam", seed="0", figure="0.5", metric="accuracy"):
    return [("arm", "seed", metric), ("none", "0", "0.5"), ("none", "1", "0.4"), (arm, seed, figure), (arm, "1", "0.3")]


def verdict(folder, *rows, column=None, **options):
    judge(read_results(table(folder, *rows), column), **options)


def in_json(path, content):
    path.write_text(json.dumps(content))
    return path


def record(folder, **plan):
    arm = {"arm": "cbam", "verdict": "helps", "reason": "", "num_pairs": 0, "plan": plan}
    arm |= {"seeds": [], "baseline": [], "treatment": []}
    metric = {"name": "accuracy", "label": "accuracy", "higher_is_better": True}
    judgement = {"baseline": "none", "margin": 0.5, "metric": metric, "max_pairs": None, "arms": [arm], "others": []}
    return read_record(in_json(folder / "record.json", {"judgement": judgement, "changes": []}))


def design(folder, **arm):
    in_json(folder / "compare.json", {"format": 1, "arms": [arm]})
    return read_design(folder)


def config(folder, content):
    (folder / "options.yaml").write_text(content, encoding="utf-8")
    return read_config(folder / "options.yaml")


def weights(folder, state):
    torch.save(state, folder / "weights.pth")
    return whatwhere.create_model("resnet18", pretrained=folder / "weights.pth")


def blocks(*prefixes):
    names = [f"{prefix}.layer1.0.conv{number}.weight" for prefix in prefixes for number in (1, 2)]
    return {name: torch.full((1,), float(value)) for value, name in enumerate(names)}


def deep(folder):
    shapes = {"conv1.weight": (1, 3, 7, 7)}
    shapes |= {f"layer{stage}.0.conv{number}.weight": (1, 1, 3, 3) for stage in range(1, 5_000) for number in (1, 2)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "weights.safetensors")
    convert_weights(folder / "weights.safetensors", folder / "target.safetensors")


def labelled(folder, *labels, **options):
    for number, _ in enumerate(labels):
        save(folder / f"{number}.png", seed=number)
    rows = [(f"{number}.png", label) for number, label in enumerate(labels)]
    prepare(str(table(folder, ("path", "label"), *rows)), seed=0, **options)


class Failing(nn.Module):
    """Shows and raises what it is given."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def extra_repr(self):
        return self.text

    def forward(self, x):
        raise RuntimeError(self.text)


def network(name, layer):
    return nn.Sequential(collections.OrderedDict({name.replace(".", "_"): layer}))


# each call is refused, whatever the name is
READS = {
    "arm": lambda folder, name: verdict(folder, *runs(arm=name), baseline="other"),
    "arms": lambda folder, name: verdict(folder, *runs(), *((arm, "0", "1") for arm in many(name)), baseline="other"),
    "one arm": lambda folder, name: verdict(folder, ("arm", "seed", "accuracy"), (name[:250], "0", "0.5")),
    "seed": lambda folder, name: verdict(folder, *runs(seed=name)),
    "seeds": lambda folder, name: verdict(folder, *runs(seed=name), ("none", "0" * 10_000, "0.5")),
    "figure": lambda folder, name: verdict(folder, *runs(figure=name)),
    "scales": lambda folder, name: verdict(folder, *runs(arm=name[:250], figure="60")),
    "heads": lambda folder, name: verdict(folder, many(name)),
    "head twice": lambda folder, name: verdict(folder, ("arm", "seed", name, name)),
    "text in a column": lambda folder, name: verdict(folder, *runs(metric=name, figure="1 200")),
    "columns": lambda folder, name: verdict(
        folder, ("arm", "seed", *many(name, 500)), ("none", "0", *["1"] * 500), column="other"
    ),
    "figures": lambda folder, name: verdict(folder, ("arm", "seed", *many(name, 500)), ("none", "0", *["1"] * 500)),
    "column": lambda folder, name: verdict(folder, *runs(), column=name),
    "metric": lambda folder, name: verdict(folder, *runs(), metric=name),
    "baseline": lambda folder, name: verdict(folder, *runs(), baseline=name),
    "arms in Python": lambda folder, name: compare(lambda *_: 0.5, map(printable, many(name)), 2, baseline="other"),
    "figure's name": lambda folder, name: compare(lambda *_: {printable(name[:50]): "text"}, ["none", "cbam"], 2),
    "record": lambda folder, name: record(folder, **{name: 1}),
    "design": lambda folder, name: design(folder, **{name: 1}),
    "arm of a design": lambda folder, name: design(folder, name=name, spec="se"),
    "asked baseline": lambda folder, name: asked_for(Request(baseline=name)),
    "asked arms": lambda folder, name: asked_for(
        Request(baseline="other", arms=tuple(Arm(f"arm{number}", "se") for number in range(5_000)))
    ),
    "arm twice": lambda folder, name: parse_arms(f"cbam,cbam={name}"),
    "arm's spec": lambda folder, name: asked_for(Request(backbone="resnet18", arms=parse_arms(f"none,other={name}"))),
    "option": lambda folder, name: config(folder, json.dumps({name: 1})),
    "value of an option": lambda folder, name: config(folder, json.dumps({"epochs": name})),
    "attention of a file": lambda folder, name: config(folder, json.dumps({"attention": f"{name}:Gate"})),
    "tag in a file": lambda folder, name: config(folder, f"epochs: !{name.encode().hex()} 1"),
    "no YAML": lambda folder, name: config(folder, "{" + name),
    "key": lambda folder, name: weights(folder, {f"{name}.weight": torch.zeros(1)}),
    "keys": lambda folder, name: weights(folder, {f"{key}.weight": torch.zeros(1) for key in many(name)}),
    "sparse": lambda folder, name: weights(folder, {name: torch.zeros(1).to_sparse()}),
    "not finite": lambda folder, name: weights(folder, {name: torch.tensor([torch.inf])}),
    "networks": lambda folder, name: weights(folder, blocks(*many(name.replace(".", "_"), 100))),
    "stages": lambda folder, name: deep(folder),
    "bundle": lambda folder, name: load_bundle(in_json(folder / "bundle.json", {"format": name})),
    "columns of images": lambda folder, name: find_source(str(table(folder, many(name)))),
    "column of images": lambda folder, name: find_source(str(table(folder, ("path", "label"))), path_column=name),
    "images": lambda folder, name: find_source(name),
    "one class": lambda folder, name: labelled(folder, name, name, name),
    "small classes": lambda folder, name: labelled(folder, f"{name}a", f"{name}b", f"{name}c"),
    "groups": lambda folder, name: labelled(folder, *"aaabbb", group_from=name),
    "name of a group": lambda folder, name: labelled(folder, *"aaabbb", group_from=f"(?P<{name}!>.)"),
    "layer": lambda folder, name: whatwhere.cost(network(name, Failing(name)), (3, 8, 8)),
    "attention": lambda folder, name: whatwhere.attend(
        whatwhere.create_model("resnext11_8x8d"), lambda channels: Failing(name)
    ),
    "place": lambda folder, name: whatwhere.attend(network(name, nn.Conv2d(3, 3, 1)), "se", at=name + "0"),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("read", READS)
def test_a_refusal_of_a_file_is_one_line_of_bounded_length(read, kind, tmp_path):
    with pytest.raises(UserError) as refusal:
        READS[read](tmp_path, NAMES[kind])
    sentence = str(refusal.value).replace(str(tmp_path), "")
    assert printable(sentence) == sentence
    assert len(sentence) <= 500


COMMANDS = {
    "a number": lambda folder, name: ("train", folder, "--epochs", name),
    "a choice": lambda folder, name: ("train", folder, "--amp", name),
    "an option": lambda folder, name: ("train", folder, f"--{name}"),
    "a command": lambda folder, name: (name,),
    "a network": lambda folder, name: ("summary", name),
    "a network's code": lambda folder, name: ("attend", f"{name}:build"),
    "a network's file": lambda folder, name: ("attend", f"{name}.yaml"),
    "a size": lambda folder, name: ("summary", "resnet18", "--input", name),
    "arms": lambda folder, name: ("compare", folder, "--attention", name),
    "processes": lambda folder, name: ("compare", folder, "--attention", "none,se", "--processes", "9" * 4_000),
    "a table": lambda folder, name: ("verdict", table(folder, *runs(seed=name))),
    "options of attention": lambda folder, name: ("weights", "convert", "a", "b", "--attention-kwargs", name),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_refuses_in_one_line_of_bounded_length(whatwhere, command, kind, tmp_path):
    status, out, err = whatwhere(*COMMANDS[command](tmp_path, NAMES[kind]))
    assert (status, out) == (2, "")
    sentence = err.removesuffix("\n").replace(str(tmp_path), "")
    assert printable(sentence) == sentence
    assert len(sentence) <= 500


@pytest.mark.parametrize("kind", NAMES)
def test_no_name_in_a_table_commands_the_terminal(kind):
    name = NAMES[kind]
    printed = text(rich_tables([Table(name, (name, "figure"), [(name, "1")], note=f"note\n{name[:20]}")])).splitlines()
    assert all(printable(line) == line for line in printed)
    assert max(map(len, printed)) <= 520


LONG = st.builds(lambda text, times: text * times, st.text(), st.integers(1, 200))


@given(LONG, LONG, st.text(st.characters(categories=("L", "N")), max_size=40))
def test_the_advice_is_whole_however_long_the_names_are(path, why, advice):
    sentence = f"{path!r} is damaged ({why}); {advice}, or start again with another --out"
    refusal = str(UserError(sentence))
    assert len(refusal) <= 300
    assert printable(refusal) == refusal
    assert refusal.endswith(f"{printable(advice)}, or start again with another --out")
    if len(printable(sentence)) <= 300:
        assert refusal == printable(sentence)


WORDS = st.lists(st.from_regex(r"[a-z]{1,12}[,:]?", fullmatch=True), min_size=1, max_size=6).map(" ".join)
QUOTED = st.builds(
    lambda text, times: repr(text * times), st.text("0123 '\";,.:()-/é", max_size=20), st.integers(1, 20)
)


@given(st.lists(st.tuples(WORDS, QUOTED), max_size=3), WORDS, st.lists(st.tuples(WORDS, QUOTED), max_size=2))
@example([("it is", repr("0' 1' 2; 3" * 30))], "such as", [("write", "'0,1'"), ("and", "'0,2'")])
def test_every_word_outside_of_quoted_names_stays(said, between, advice):
    before, after = (" ".join(map(" ".join, part)) for part in (said, advice))
    sentence = f"{before} {between}; {after}"
    refusal, names = str(UserError(sentence)), [name for _, name in (*said, *advice)]
    assert len(refusal) <= 300 or refusal == sentence
    if len(sentence) <= 300:
        assert refusal == sentence
    elif len(sentence) - sum(map(len, names)) + 20 * len(names) <= 300:
        assert re.findall(r"[a-z,:]+", re.sub(r"[^a-z]+", " ", refusal)) == re.findall(r"[a-z]+", sentence)
        # short names, such as examples, too
        assert all(name in refusal for name in names if len(name) <= 20)


def test_what_a_sentence_says_and_its_examples_are_whole():
    names = "'resnet', 'cbam' and 'map'"
    examples = "'arm,seed,accuracy', 'none,0,0.61', 'cbam,0,0.62'"
    end = f"may be figures of one arm ('it''s'); write lines such as {examples}, or say more"
    path = "/data/its' place/" + "x" * 400 + "; y"
    refusal = str(UserError(f"no column 'arm' in {path!r}, and {names} {end}"))
    assert refusal.startswith("no column 'arm' in \"/data/its")
    assert refusal.endswith(f'x; y", and {names} {end}')
    assert len(refusal) == 300
    # where words must go, whole ones do
    cut = str(UserError(f"it is so: {'somewhat longer words ' * 30}'a b'; {examples} are lines, {examples} too"))
    assert set(re.sub(r"'[^']*'[,;]?", "", cut).split()) <= {
        *["it", "is", "so:", "somewhat", "longer", "words", "...", "are", "lines,", "too"]
    }
    assert cut.endswith(f"'a b'; {examples} are lines, {examples} too")


def test_a_command_is_whole_however_long_it_is():
    command = "whatwhere check '" + "d; " * 400 + "x'"
    refusal = UserError(f"{'x' * 1_000} is not sound; see all of it with", command)
    sentence, _, told = str(refusal).partition(": ")
    assert (len(sentence), told) == (300, command)
    assert str(pickle.loads(pickle.dumps(refusal))) == str(refusal)
    assert str(UserError("no command; mend it")) == "no command; mend it"


def test_the_middle_of_the_longest_name_is_lost():
    long, other = "x" * 280, "b" * 40
    refusal = str(UserError(f"'/data/{long}/a.png' and {other!r} differ; the file's mend is 'it'"))
    assert len(refusal) == 300
    assert refusal.startswith("'/data/xxx")
    assert refusal.endswith(f"xxx/a.png' and {other!r} differ; the file's mend is 'it'")
    words = str(UserError("word " * 200 + "; mend it"))
    assert 290 < len(words) <= 300
    assert {*words.split()} == {"word", "...", ";", "mend", "it"}


@pytest.mark.parametrize("kind", NAMES)
def test_no_name_in_a_line_commands_the_terminal(kind, capsys):
    for show_it in (say, tell):
        show_it(f"The report: [red]{NAMES[kind]}[/red]")
        printed = capsys.readouterr()
        lines = (printed.out or printed.err).removesuffix("\n").split("\n")
        assert all(printable(line) == line for line in lines)
        assert "[red]" in "".join(lines)


def test_commands_print_by_what_escapes_control_characters():
    """Standard output gets CSV and names of networks as they are, all else by say, say_json, tell and show."""
    plain = {"comma_separated", "version", "'\\n'.join"}
    for path in (Path(whatwhere.__file__).parent / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo"):
                first = node.args[0]
                is_plain = isinstance(first, ast.Constant) or (
                    isinstance(first, ast.Call) and ast.unparse(first.func) in plain
                )
                assert is_plain, f"{path.name}:{node.lineno}"


def test_near_names_are_short():
    assert suggest("x", ["x" * 10_000]) == f"; did you mean {short('x' * 10_000)}?"


def test_near_names_are_found_whatever_their_case():
    assert suggest("dgo", ["Cat", "DOG"]) == "; did you mean DOG?"
    assert suggest("photo", ["Photos"], before="data/\n") == r"; did you mean data/\nPhotos?"


# functions of the package that may stand where a ValueError is caught: what they raise is a plain ValueError, or their
# UserError becomes part of the sentence that is raised instead
CAUGHT = {
    "number_in": "raises ValueError: no number",
    "epoch_of": "raises ValueError: no number of an epoch",
    "parse_yaml": "raises ValueError: no YAML",
    "read_spec": "raises ValueError: no spec",
    "_check_parts": "its sentence is quoted by read_design",
    "record": "its sentence is quoted by follow, when no example runs",
    "faster": "measures the network of a user; the estimate names nothing then",
    "_results": "runs the network of a user; the sentence is quoted by optimize_for_inference",
    "optimize_for_inference": "only saves time: a bundle that cannot be prepared predicts as it is",
    "parse_json": "raises ValueError: no JSON",
    "health_of": "only informs, at the end of a training whose result counts more",
    "self.trainer.autocast": "raises nothing",
    "read_file": "a checkpoint that cannot be read is damaged; the sentence around it tells why",
    "read_json": "a cache that cannot be read is made anew",
    "brief": "raises nothing",
    "_brief": "raises what a user's class raises",
    "_checksum": "raises nothing of its own",
    "_digest": "raises nothing",
    "_file": "raises nothing",
    "_spaced": "raises nothing",
    "quiet": "raises nothing",
    "seeded": "raises nothing",
    "current_folder_importable": "raises nothing",
}
BROAD = {"ValueError", "Exception", "BaseException"}


def broad_catches(tree):
    """The bodies of try and suppress that catch a ValueError with others, and let no UserError pass."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                last = handler.body[-1]
                caught = {"BaseException"} if handler.type is None else names_in(handler.type)
                if "UserError" in caught or (isinstance(last, ast.Raise) and last.exc is None):
                    break
                if caught & BROAD:
                    yield node.body
                    break
        elif isinstance(node, ast.With):
            for call in (item.context_expr for item in node.items):
                if "suppress" in ast.unparse(call) and names_in(call) & BROAD:
                    yield node.body


def names_in(node):
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def own_calls(tree, body):
    """The functions of the package that a body calls, also as methods of self."""
    own = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))} | {"self"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            own |= {alias.asname or alias.name for alias in node.names if not (alias.asname or alias.name).isupper()}
    for node in (part for statement in body for part in ast.walk(statement)):
        if isinstance(node, ast.Call):
            first = node.func
            while isinstance(first, (ast.Attribute, ast.Subscript)):
                first = first.value
            if isinstance(first, ast.Name) and first.id in own:
                yield ast.unparse(node.func)


def test_no_catch_of_value_errors_hides_a_user_error():
    """A UserError is a ValueError, so that a broad catch around code of ours takes its sentence away."""
    found = {}
    for path in sorted(Path(whatwhere.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for body in broad_catches(tree):
            for name in own_calls(tree, body):
                if name not in CAUGHT and name != "self.file.read_bytes":
                    found[name] = f"{path.name}:{body[0].lineno}"
    assert found == {}
    hidden = ast.parse("from .x import read\ntry:\n    read()\nexcept (OSError, ValueError):\n    pass\n")
    assert [list(own_calls(hidden, body)) for body in broad_catches(hidden)] == [["read"]]
