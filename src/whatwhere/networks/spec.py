"""The one description of a network: `NetworkSpec`, and the names of the networks of this package. No torch here."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import msgspec.structs
from msgspec import Meta

from ..base.documents import parse_json, parse_yaml
from ..base.errors import UserError
from ..base.words import brief, cause

MAX_WIDTH_FACTOR = 16.0  # about 256 times the parameters

# the keys of ATTENTION, RESNETS and ARTICLE_NETWORKS, which need torch; a test compares them
ATTENTIONS = (
    "cbam", "se", "eca", "srm", "gct", "ge", "scse", "gc", "fca", "bam", "coord", "ela", "ema", "simam", "triplet"
)  # fmt: skip
STATIC = "static:"  # before a name in ATTENTION, its placebo
BACKBONES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet18_1_5", "wide_resnet18_2",
    "wide_resnet50_2", "resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d",
    "resnext152_32x4d", "resnet8", "resnet20", "resnext29_8x64d", "resnext29_16x64d",
    "resnext29_32x4d", "resnext11_8x8d",
)  # fmt: skip
ARTICLE_BACKBONES = ("article_resnext50", "article_resnext101", "article_resnext152")

# name -> (attention in the name or "", backbone); the article's CBAM is a module of its own
OWN_NETWORKS: dict[str, tuple[str, str]] = {
    **{name: ("", name) for name in (*BACKBONES, *ARTICLE_BACKBONES)},
    **{f"{attention}_{name}": (attention, name) for attention in ATTENTIONS for name in BACKBONES},
    **{f"cbam_{name}": ("", name) for name in ARTICLE_BACKBONES},
}

# arguments that a file may bring along: a value of a few bytes must not ask for much memory
_Number = Annotated[int, Meta(ge=-65_536, le=65_536)] | Annotated[float, Meta(ge=-65_536, le=65_536)]
_Text = Annotated[str, Meta(max_length=64)]
_Value = bool | _Number | _Text | None
_Argument = _Value | Annotated[list[_Value], Meta(max_length=64)]
Arguments = dict[_Text, _Argument]


class ModelOptions(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Arguments of the network's class that a file may bring along (see `ResNet`)."""

    stride_in_1x1: bool = False
    ceil_pool: bool = False
    replace_stride_with_dilation: Annotated[list[bool], Meta(max_length=16)] | None = None
    drop_rate: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    drop_path_rate: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A network, as `networks.create` builds it. Equal specs and equal seeds build equal networks.

    Attributes:
        name: A network of this package, or `torchvision:NAME` or `timm:NAME`.
        attention: A name in ATTENTION, "static:" and such a name for its placebo, or MODULE:NAME for code of the user;
            "" for none, or for that in the name.
        attention_kwargs: Keyword arguments of the attention.
        at: Where the attention stands (see `attend`); "" for its own place.
        start: How the attention starts, "identity" or "paper"; "" means "identity" with pretrained weights that have
            no attention, else "paper".
        replace: "se" puts the attention in the place of each squeeze-and-excitation module.
        width_factor: Each stage has max(1, round(width_factor * planes)) planes; networks of this package only.
        num_classes: Width of the classifier.
        in_channels: Channels of the images.
        model_kwargs: Further arguments of the network's class.
        as_published: Whether the settings that torchvision changes with its published weights are set
            (`transform_input` of Inception and GoogLeNet).
    """

    name: str
    attention: str = ""
    attention_kwargs: dict[str, Any] = {}
    at: str = ""
    start: Literal["", "identity", "paper"] = ""
    replace: Literal["", "se"] = ""
    width_factor: Annotated[float, Meta(gt=0, le=MAX_WIDTH_FACTOR)] = 1.0
    num_classes: Annotated[int, Meta(ge=0, lt=2**31)] = 1000
    in_channels: Annotated[int, Meta(ge=1, lt=2**31)] = 3
    model_kwargs: dict[str, Any] = {}
    as_published: bool = False

    @property
    def is_own(self) -> bool:
        """Whether the network belongs to this package."""
        return self.name in OWN_NETWORKS

    @property
    def backbone(self) -> str:
        """The name of the same network without the attention in its name."""
        return OWN_NETWORKS[self.name][1] if self.is_own else self.name

    @property
    def attention_name(self) -> str:
        """The attention, given or in the name; "" for none."""
        return self.attention or OWN_NETWORKS.get(self.name, ("", ""))[0]

    @property
    def attention_options(self) -> dict[str, Any]:
        """All keyword arguments of the attention, with `start` among them where it is set."""
        return {**self.attention_kwargs, **({"start": self.start} if self.start else {})}

    def with_attention_options(self, options: Mapping[str, Any]) -> NetworkSpec:
        """Return the spec with these arguments of the attention; a `start` among them counts where the spec has none.

        The inverse of `attention_options`.
        """
        kwargs = dict(options)
        start = kwargs.pop("start", "")
        return msgspec.structs.replace(self, attention_kwargs=kwargs, start=self.start or start)

    def describe(self) -> str:
        """Return the network in words: "resnet50 with cbam (reduction 8) at blocks, 2 times as wide"."""
        options = self.attention_options
        text = f"{self.name} with {self.attention}" if self.attention else self.name
        if self.attention_name and options:
            text += f" ({', '.join(f'{name} {value}' for name, value in options.items())})"
        if self.attention_name and self.at:
            text += f" at {self.at}"
        if self.replace:
            text += f" instead of {self.replace}"
        return text if self.width_factor == 1 else f"{text}, {self.width_factor:.4g} times as wide"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `create_model` besides the name, without defaults."""
        shown = {"in_channels": self.in_channels, "attention": self.attention, "width_factor": self.width_factor}
        shown = {name: value for name, value in shown.items() if value != _DEFAULTS[name]}
        shown |= {"attention_kwargs": self.attention_options} if self.attention_options else {}
        return {"num_classes": self.num_classes, **shown, **self.model_kwargs}

    def call(self) -> str:
        """Return the line of Python that builds the network."""
        return f"create_model({self.name!r}{''.join(f', {key}={value!r}' for key, value in self.arguments().items())})"


_DEFAULTS = dict(zip(NetworkSpec.__struct_fields__[1:], NetworkSpec.__struct_defaults__, strict=True))


def is_import_path(attention: str) -> bool:
    """Return whether `attention` is MODULE:NAME, which names code of the user, rather than a name in ATTENTION."""
    return ":" in attention and not attention.startswith(STATIC)


def read_spec(content: Any) -> NetworkSpec:
    """Return the spec that a JSON file holds.

    Raises:
        ValueError: The content is no spec, or has arguments that a file must not bring along.
    """
    spec = msgspec.convert(content, NetworkSpec)
    msgspec.convert(spec.attention_kwargs, Arguments)
    msgspec.convert(spec.model_kwargs, ModelOptions)
    return spec


def parse_arguments(text: str, option: str = "--attention-kwargs") -> dict[str, Any]:
    """Return the keyword arguments in `text`: JSON, or the same without quotes, `{reduction: 8, form: timm}`.

    Raises:
        UserError: The text is neither.
    """
    parsed: Any
    try:
        parsed = parse_json(text, dict[str, Any])
    except ValueError:
        try:
            # YAML needs a space after each colon
            parsed = parse_yaml(_spaced(text))
        except ValueError as error:
            raise UserError(f"{option} {brief(text)} cannot be read ({cause(error)}); give {_EXAMPLE}") from error
    if not isinstance(parsed, dict) or not all(isinstance(key, str) for key in parsed):
        raise UserError(f"{option} must be keyword arguments such as {_EXAMPLE}, got {brief(text)}")
    return parsed


_EXAMPLE = '{"reduction": 8}'


def _spaced(text: str) -> str:
    """Return `text` with a space after each colon outside quotes."""
    quote, result = "", []
    for character in text:
        if character in "\"'":
            quote = "" if character == quote else quote or character
        result.append(": " if character == ":" and not quote else character)
    return "".join(result)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the networks of this package, sorted, that match the shell-style `pattern` (fnmatch).

    Example:
        >>> from whatwhere import list_models
        >>> list_models("*bam_resnext50*")
        ['bam_resnext50_32x4d', 'cbam_resnext50_32x4d']
    """
    if not isinstance(pattern, str):
        raise UserError(f"the pattern must be a string such as 'cbam_*', got {brief(pattern)}")
    return sorted(fnmatch.filter(OWN_NETWORKS, pattern))
