import collections
import dataclasses

import torch

from whatwhere.base.modules import tensors_in


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    extra: object = None


def test_the_tensors_of_any_output_in_order():
    a, b, c, d = (torch.zeros(n) for n in range(4))
    for value, expected in (
        (a, [a]),
        ([a, (b, None, "text", 7)], [a, b]),
        ({"x": c, "y": [a]}, [c, a]),
        (Output(b, {"aux": Output(a)}), [b, a]),
        (collections.OrderedDict(x=a, y=b), [a, b]),
        (collections.deque([c, d]), [c, d]),  # a pytree that torch knows
        (frozenset([d]), [d]),
        (None, []),
        (Output, []),
        (torch.nn.Linear(1, 1), []),
    ):
        found = tensors_in(value)
        assert len(found) == len(expected)
        assert all(one is other for one, other in zip(found, expected, strict=True))


def test_a_container_that_holds_itself_ends():
    tensor = torch.zeros(2)
    value = [tensor]
    value.append(value)
    assert tensors_in(value) == [tensor]
