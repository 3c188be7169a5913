"""Why weights do not fit: said where the tensors show it for every name, and never guessed."""

import pytest
import timm
import torch

from whatwhere import create_model
from whatwhere.weights import compare


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


def renamed(state, old, new):
    return {key.replace(old, new): value for key, value in state.items()}


REDUCED = {"attention_kwargs": {"reduction": 8}}
WITHOUT_BIAS = {"attention_kwargs": {"mlp_bias": False}}
NO_ATTENTION = "the file has no attention and this network has; take the plain network"
INCOMPLETE = "the file is incomplete, it holds {} of {} tensors, or of a smaller network"


@pytest.mark.parametrize(
    ("theirs", "ours", "cause"),
    [
        (lambda: {"blocks.0.weight": empty(3)}, "resnet18", "none of its names is one of this network's"),
        (lambda: timms("resnet26t"), "resnet26", "a stem of several convolutions, as timm's c, d, s and t networks have"),
        (lambda: tensors("resnet18", in_channels=5), "resnet18", "conv1 takes 5 channels in the file and 3 in this"),
        (lambda: tensors("resnet50"), "wide_resnet50_2", "layers of another width or number of groups"),
        (lambda: tensors("bam_wide_resnet18_2"), "bam_resnet18", "layers of another width or number of groups"),
        (lambda: tensors("cbam_resnet50"), "cbam_resnet34", "made of bottlenecks and this one of basic blocks"),
        (lambda: tensors("bam_resnet50"), "bam_resnet34", "made of bottlenecks and this one of basic blocks"),
        (lambda: tensors("resnet50"), "cbam_resnet34", f"one of basic blocks; {NO_ATTENTION}"),
        (lambda: tensors("cbam_resnet34"), "resnet18", "and this network 2-2-2-2; the file has attention and this network"),
        (lambda: tensors("cbam_resnet18", **REDUCED), "cbam_resnet18", "another number of hidden channels; give its red"),
        (lambda: tensors("cbam_resnet18", **WITHOUT_BIAS), "cbam_resnet18", "the file's attention has no biases in its MLP"),
        (lambda: tensors("eca_resnet18"), "se_resnet18", "attention is of another kind, or built with other attention_kwargs"),
        (
            lambda: {**tensors("resnet18"), "fc.weight": empty(4, 2048)},
            "resnet18",
            "fc takes 2048 features in the file and 512 in this network",
        ),
        (
            lambda: {**tensors("resnet18"), "conv1.weight": empty(64, 3, 7, 7, dtype=torch.int8)},
            "resnet18",
            "the file's tensors are int8 there",
        ),
    ],
)  # fmt: skip
def test_what_the_tensors_show(theirs, ours, cause):
    own = timms(ours) if ours == "resnet26" else tensors(ours)
    fit = compare(theirs(), own)
    assert cause in fit.cause
    assert fit.sentence().endswith(fit.cause)


def damaged(state, key, *shape):
    return {**state, key: empty(*shape)}


@pytest.mark.parametrize(
    ("theirs", "ours", "cause"),
    [
        # one name in common: no other kind of network for certain
        (lambda: {"bn1.weight": empty(64), "blocks.0.weight": empty(3)}, "resnet18", ""),
        # one convolution in a Sequential, and its norm
        (
            lambda: {**renamed(tensors("resnet18"), "conv1.weight", "conv1.0.weight"), "conv1.1.weight": empty(64)},
            "resnet18",
            "",
        ),
        # bottlenecks whose last layers are lost are no basic blocks
        (lambda: without(tensors("resnet50"), "conv3.weight"), "resnet50", INCOMPLETE.format(304, 320)),
        (lambda: {**without(tensors("resnet50"), "conv3.weight"), "head.weight": empty(3)}, "resnet50", ""),
        # a layer elsewhere that is called conv3
        (lambda: {**tensors("resnet18"), "head.conv3.weight": empty(3, 3, 1, 1)}, "resnet18", ""),
        # attention under names of its own, whatever it is
        (lambda: {**tensors("resnet18"), "layer1.0.att.fc.weight": empty(3)}, "cbam_resnet18", ""),
        (lambda: {**tensors("cbam_resnet18"), "layer1.0.att.fc.weight": empty(3)}, "resnet18", ""),
        # cut short, with something else beside it
        (lambda: {**dict(list(tensors("resnet34").items())[:60]), "queue": empty(3)}, "resnet34", ""),
        # a name that only looks like a further block's
        (lambda: {**tensors("resnet18"), "layer4.2.note": empty(3)}, "resnet18", ""),
        # one damaged tensor in one of many gates
        (lambda: damaged(tensors("cbam_resnet18"), "layer2.0.attention.what.fc1.weight", 3, 3), "cbam_resnet18", ""),
        (lambda: damaged(tensors("cbam_resnet18"), "layer2.0.attention.where.conv.weight", 1, 2, 3, 3), "cbam_resnet18", ""),
        (
            lambda: renamed(tensors("cbam_resnet18"), "layer1.0.attention.what", "layer1.0.attention.which"),
            "cbam_resnet18",
            "",
        ),
        # a norm's bias is none of the MLP's
        (lambda: without(tensors("cbam_resnet18"), "where.norm.bias"), "cbam_resnet18", INCOMPLETE.format(194, 202)),
        # another number of classes, or another head, on the same features
        (lambda: damaged(tensors("resnet18"), "fc.bias", 7), "resnet18", ""),
        (lambda: renamed(tensors("resnet18"), "fc.", "fc.0."), "resnet18", ""),
        (lambda: damaged(tensors("resnet18"), "fc.weight", 512), "resnet18", ""),
        # damaged convolutions, which do not fit their own norms or each other
        (
            lambda: damaged(damaged(tensors("resnet18"), "layer1.0.conv1.weight", 7, 64, 3, 3), "layer1.1.conv1.weight", 7, 64, 3, 3),
            "resnet18",
            "",
        ),
        (lambda: damaged(tensors("resnet18"), "layer2.1.conv1.weight", 128, 5, 3, 3), "resnet18", ""),
        (lambda: damaged(tensors("resnet18"), "layer2.1.conv2.weight", 128, 64, 3, 3), "resnet18", ""),
        # kernels the other way round, as other frameworks have them
        (lambda: {key: value.permute(2, 3, 1, 0) if value.dim() == 4 else value for key, value in tensors("resnet18").items()}, "resnet18", ""),
        # shapes that nothing has
        (lambda: dict.fromkeys(tensors("cbam_resnet18"), empty()), "cbam_resnet18", ""),
        (lambda: dict.fromkeys(tensors("resnet50"), empty(0, 0, 0, 0)), "resnet50", ""),
    ],
)  # fmt: skip
def test_what_they_do_not_show_is_not_guessed(theirs, ours, cause):
    fit = compare(theirs(), tensors(ours))
    assert fit.groups
    assert fit.cause == cause
