"""Why weights do not fit: said where the tensors show it for every name, and never guessed."""

import pytest
import timm
import torch

from whatwhere import create_model
from whatwhere.networks.weights.fit import compare


def tensors(name, num_classes=4, **options):
    """The state dict of one of our networks, without memory."""
    with torch.device("meta"):
        return create_model(name, num_classes=num_classes, seed=0, **options).state_dict()


def timms(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=4).state_dict()


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def without(state, *ends):
    return {key: value for key, value in state.items() if not key.endswith(ends)}


def damaged(state, key, *shape):
    return {**state, key: empty(*shape)}


def renamed(state, old, new):
    return {key.replace(old, new): value for key, value in state.items()}


REDUCED = {"attention_kwargs": {"reduction": 8}}
WITHOUT_BIAS = {"attention_kwargs": {"mlp_bias": False}}
NO_ATTENTION = "the file has no attention and this network has some; take the plain network"


SHOWN = {
    "nothing in common": (
        lambda: {"blocks.0.weight": empty(3)},
        "resnet18",
        "none of its names occurs in this network",
    ),
    "stem": (
        lambda: timms("resnet26t"),
        "resnet26",
        "a stem of several convolutions, as timm's c, d, s and t networks",
    ),
    "input": (
        lambda: tensors("resnet18", in_channels=5),
        "resnet18",
        "conv1 takes 5 channels in the file and 3 in this",
    ),
    "groups": (lambda: tensors("resnet50"), "resnext50_32x4d", "layers of another width or number of groups"),
    "width": (lambda: tensors("resnet50"), "wide_resnet50_2", "layers of another width or number of groups"),
    "width and BAM": (lambda: tensors("bam_wide_resnet18_2"), "bam_resnet18", "layers of another width or number of"),
    "blocks": (
        lambda: tensors("cbam_resnet50"),
        "cbam_resnet34",
        "of bottlenecks and this one of basic blocks",
    ),
    "blocks and BAM": (
        lambda: tensors("bam_resnet50"),
        "bam_resnet34",
        "network consists of bottlenecks and this one of",
    ),
    "blocks, no CBAM": (lambda: tensors("resnet50"), "cbam_resnet34", f"one of basic blocks; {NO_ATTENTION}"),
    "depth, CBAM": (
        lambda: tensors("cbam_resnet34"),
        "resnet18",
        "this network 2-2-2-2; the file has attention and this",
    ),
    "reduction": (
        lambda: tensors("cbam_resnet18", **REDUCED),
        "cbam_resnet18",
        "number of hidden channels; give its red",
    ),
    "biases": (lambda: tensors("cbam_resnet18", **WITHOUT_BIAS), "cbam_resnet18", "attention has no biases in its MLP"),
    "attention": (
        lambda: tensors("eca_resnet18"),
        "se_resnet18",
        "is of another kind, built with other attention_kwargs, or",
    ),
    "classifier": (
        lambda: damaged(tensors("resnet18"), "fc.weight", 4, 2048),
        "resnet18",
        "fc takes 2048 features in the file and 512 in this network",
    ),
    "integers": (
        lambda: {**tensors("resnet18"), "conv1.weight": empty(64, 3, 7, 7, dtype=torch.int8)},
        "resnet18",
        "the file has int8 where the network has float32",
    ),
}


@pytest.mark.parametrize("case", SHOWN)
def test_what_the_tensors_show(case):
    theirs, ours, cause = SHOWN[case]
    fit = compare(theirs(), timms(ours) if ours == "resnet26" else tensors(ours))
    assert cause in fit.cause
    assert fit.sentence().endswith(fit.cause)


def transposed(state):
    """Kernels the other way round, as other frameworks have them."""
    return {key: value.permute(2, 3, 1, 0) if value.dim() == 4 else value for key, value in state.items()}


CONV_IN_SEQUENTIAL = ("conv1.weight", "conv1.0.weight")
NOT_SHOWN = {
    "one name in common": (lambda: {"bn1.weight": empty(64), "blocks.0.weight": empty(3)}, "resnet18"),
    "a stem of one convolution in a Sequential": (
        lambda: {**renamed(tensors("resnet18"), *CONV_IN_SEQUENTIAL), "conv1.1.weight": empty(64)},
        "resnet18",
    ),
    "bottlenecks that lost their last layers": (
        lambda: {**without(tensors("resnet50"), "conv3.weight"), "head.weight": empty(3)},
        "resnet50",
    ),
    "another layer called conv3": (
        lambda: {**tensors("resnet18"), "head.conv3.weight": empty(3, 3, 1, 1)},
        "resnet18",
    ),
    "attention of another name": (
        lambda: {**tensors("resnet18"), "layer1.0.att.fc.weight": empty(3)},
        "cbam_resnet18",
    ),
    "more than attention": (lambda: {**tensors("cbam_resnet18"), "layer1.0.att.fc.weight": empty(3)}, "resnet18"),
    "cut short, with something beside it": (
        lambda: {**dict(list(tensors("resnet34").items())[:60]), "queue": empty(3)},
        "resnet34",
    ),
    "a name like a further block's": (lambda: {**tensors("resnet18"), "layer4.2.note": empty(3)}, "resnet18"),
    "a damaged MLP in one gate": (
        lambda: damaged(tensors("cbam_resnet18"), "layer2.0.attention.what.fc1.weight", 3, 3),
        "cbam_resnet18",
    ),
    "a damaged convolution in one gate": (
        lambda: damaged(tensors("cbam_resnet18"), "layer2.0.attention.where.conv.weight", 1, 2, 3, 3),
        "cbam_resnet18",
    ),
    "other names in one gate": (
        lambda: renamed(tensors("cbam_resnet18"), "layer1.0.attention.what", "layer1.0.attention.which"),
        "cbam_resnet18",
    ),
    "a classifier's bias": (lambda: damaged(tensors("resnet18"), "fc.bias", 7), "resnet18"),
    "a classifier in a Sequential": (lambda: renamed(tensors("resnet18"), "fc.", "fc.0."), "resnet18"),
    "a classifier that is none": (lambda: damaged(tensors("resnet18"), "fc.weight", 512), "resnet18"),
    "convolutions that do not fit their norms": (
        lambda: damaged(
            damaged(tensors("resnet18"), "layer1.0.conv1.weight", 7, 64, 3, 3), "layer1.1.conv1.weight", 7, 64, 3, 3
        ),
        "resnet18",
    ),
    "a convolution of other channels than come": (
        lambda: damaged(tensors("resnet18"), "layer2.1.conv1.weight", 128, 5, 3, 3),
        "resnet18",
    ),
    "groups in one block": (lambda: damaged(tensors("resnet18"), "layer2.1.conv2.weight", 128, 64, 3, 3), "resnet18"),
    "other axes": (lambda: transposed(tensors("resnet18")), "resnet18"),
    "scalars": (lambda: dict.fromkeys(tensors("cbam_resnet18"), empty()), "cbam_resnet18"),
    "empty ones": (lambda: dict.fromkeys(tensors("resnet50"), empty(0, 0, 0, 0)), "resnet50"),
}


@pytest.mark.parametrize("case", NOT_SHOWN)
def test_what_they_do_not_show_is_not_guessed(case):
    theirs, ours = NOT_SHOWN[case]
    fit = compare(theirs(), tensors(ours))
    assert fit.groups
    assert fit.cause == ""


@pytest.mark.parametrize(
    ("name", "lost", "left"), [("resnet50", "conv3.weight", 304), ("cbam_resnet18", "norm.bias", 194)]
)
def test_of_lost_tensors_nothing_more_is_said(name, lost, left):
    own = tensors(name)
    cause = f"the file is incomplete, it holds {left} of {len(own)} tensors, or of a smaller network"
    assert compare(without(own, lost), own).cause == cause
