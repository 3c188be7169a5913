from __future__ import annotations

from torch import nn

from ..base.modules import refuse_scripting
from .gate import Attention, IdentityStart


def no_weight_decay(model: nn.Module) -> set[str]:
    """Return the names of the attention's parameters that weight decay must leave alone, wherever they are in `model`.

    Decay pulls a parameter to 0. A mixing factor at 0 turns the attention off, and a scale or a norm's weight at 0
    makes its gates constant. These are exempt, in each module of this package, in each `IdentityStart` and in each
    module that `attend` has put in:

    - every parameter of fewer than two dimensions: `mix`, biases, norms, and GCT's alpha, beta and gamma;
    - those that a module inside names in a method `no_weight_decay()`, as networks of timm do: the weight of SRM.

    Args:
        model: Any network: from `attend`, from `create_model`, or one's own with attention inside.

    Returns:
        Names as in `model.named_parameters()`; an empty set for a network without attention. The parameters of the
        network itself are not among them.

    Note:
        timm exempts parameters of fewer than two dimensions by itself, and asks the networks of this package for the
        rest. For any other network, give timm's `param_groups_weight_decay` these names as `no_weight_decay_list`.

    Example:
        >>> import torchvision
        >>> from whatwhere import attend, no_weight_decay
        >>> sorted(no_weight_decay(attend(torchvision.models.resnet18(), "eca")))[:2]
        ['layer1.0.attention.mix', 'layer1.1.attention.mix']
    """
    exempt: set[int] = set()
    for attention in model.modules():
        # attend leaves this mark on what it puts in, a module of the user too
        is_marked = vars(attention).get("__prepare_scriptable__") is refuse_scripting
        if is_marked or isinstance(attention, (Attention, IdentityStart)):
            exempt |= {id(parameter) for parameter in attention.parameters() if parameter.dim() < 2}
            for module in attention.modules():
                declared = getattr(module, "no_weight_decay", None)
                names = declared() if callable(declared) else ()
                exempt |= {id(parameter) for name, parameter in module.named_parameters() if name in names}
    return {name for name, parameter in model.named_parameters() if id(parameter) in exempt}
