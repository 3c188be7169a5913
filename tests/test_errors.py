"""Values that may be anything stand in a sentence as one short line."""

import collections
import enum

import numpy
import pytest
import torch
from torch import nn

import whatwhere
from whatwhere import UserError
from whatwhere.errors import brief, nearest
from whatwhere.experiment import compare


class Hostile:
    """Nothing that it is asked is answered."""

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
    assert nearest(HOSTILE[kind](), ["cbam", "se"]) == ""


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
}


# any text is a pattern, and a reduction beyond all channels leaves one
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
