"""The state of a training, typed: what a checkpoint holds, checked before a run goes on from it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from ..base.errors import UserError
from ..base.words import few, short
from ..collect.result import Amount, Count


@dataclass
class Position:
    """How far training is: the number of steps done, and the sum of the losses of this epoch and its images so far."""

    step: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    loss_sum: Annotated[float, Meta(ge=0, le=1e300)] = 0.0
    num_images: Annotated[int, Meta(ge=0, lt=2**53)] = 0


class OptimizerGroup(msgspec.Struct):
    """A group of parameters, by number; learning rate and all else of it are the recipe's."""

    params: list[Annotated[int, Meta(ge=0, lt=2**31)]]


class OptimizerState(msgspec.Struct):
    """What `optimizer_state` returns."""

    state: dict[str, dict[str, Tensor | None]]  # what is kept for each parameter, by its number
    groups: list[OptimizerGroup]


class ScalerState(msgspec.Struct, rename={"growth_tracker": "_growth_tracker"}):
    """The state of torch.amp.GradScaler, which scales the loss in float16."""

    scale: Annotated[float, Meta(gt=0, le=1e38)]
    growth_factor: Annotated[float, Meta(gt=1, le=1e3)]
    backoff_factor: Annotated[float, Meta(gt=0, lt=1)]
    growth_interval: Annotated[int, Meta(ge=1, lt=2**31)]
    growth_tracker: Annotated[int, Meta(ge=0, lt=2**31)]


class TrainerState(msgspec.Struct, kw_only=True):
    """What `Trainer.state_dict` returns, as a checkpoint has it."""

    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: OptimizerState
    scaler: dict[str, Any]  # `ScalerState`, or empty
    position: Position


Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]


@dataclass
class Progress:
    """How far a run is, besides the state of the trainer: a part of each checkpoint."""

    num_evaluated: Count = 0
    best_epoch: Count = 0
    best_score: Finite | None = None
    best_loss: Finite = -sys.float_info.max  # of the best epoch; checkpoints of earlier versions lack it
    seconds: Amount = 0.0


class RunState(msgspec.Struct):
    """What a checkpoint holds."""

    trainer: dict[str, Any]  # `TrainerState`
    record: Progress
    run: str = ""  # `RunDescription.digest`; checkpoints of earlier versions lack these two
    metrics: str = ""  # `RunFolder.metrics_digest` of the epochs evaluated so far


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer with text as keys, as JSON needs them."""
    state = optimizer.state_dict()
    return {"state": {str(key): dict(value) for key, value in state["state"].items()}, "groups": state["param_groups"]}


# what the optimizers of a recipe keep for each parameter: of its shape, and a number of steps
_KEPT = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load what `optimizer_state` returned; learning rate, momentum and decay stay those of `optimizer`.

    Raises:
        UserError: A value has another shape than its parameter, because the order of the parameters has changed.
        ValueError: It is no such state, or one of another optimizer.
    """
    found, own = msgspec.convert(state, OptimizerState, from_attributes=True), optimizer.state_dict()["param_groups"]
    if [group.params for group in found.groups] != [group["params"] for group in own]:
        raise ValueError("the optimizer has other parameters")
    numbers = {str(number) for group in own for number in group["params"]}
    for key, kept in found.state.items():
        if key not in numbers or (kept and set(kept) != _KEPT[type(optimizer)]):
            raise ValueError(f"the optimizer keeps {few(sorted(kept))} for parameter {short(key)}")
        step = kept.get("step")
        if "step" in kept and (step is None or step.dim() or not 0 <= float(step) < 2**53):
            raise ValueError(f"the optimizer has no number of steps for parameter {key}")
        if any(
            value is None or not value.is_floating_point()
            for name, value in kept.items()
            if name != "momentum_buffer" or value is not None
        ):
            raise ValueError(f"the optimizer keeps no floating-point tensors for parameter {key}")
    optimizer.load_state_dict({"state": {int(key): value for key, value in found.state.items()}, "param_groups": own})
    # a file does not keep the memory format; the optimizer is fast on a GPU only with that of the parameter
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and name != "step":
                if value.shape != parameter.shape:
                    raise UserError(
                        f"the checkpoint's {short(name)} has the shape {tuple(value.shape)} where a parameter now has "
                        f"{tuple(parameter.shape)}; finish the run with the version that began it, or begin anew"
                    )
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def load_network(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict with the names, shapes and dtypes of the model's own; raise ValueError where it has others."""
    own = model.state_dict()
    if state.keys() != own.keys():
        raise ValueError(f"the network has other tensors: {few(sorted(state.keys() ^ own.keys()))}")
    for name, value in state.items():
        if (value.shape, value.dtype) != (own[name].shape, own[name].dtype):
            raise ValueError(f"{short(name)} is another tensor than that of the network")
    model.load_state_dict(state)
