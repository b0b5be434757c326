"""A comparison of the names and shapes of weights with a configuration, and one error for all differences."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import torch

from qwen_vl.families import v1 as family

Shape = list[int]


class Misfit(NamedTuple):
    """Names of weights that a folder lacks, has in addition to a configuration, or has in another shape."""

    missing: Collection[str]
    left_over: Collection[str]
    reshaped: Collection[str]


def compare(wanted: Mapping[str, Shape], stored: Mapping[str, Shape | None]) -> Misfit:
    """Return the Misfit of two tables of shapes by name; a stored shape of None is one that is not known yet."""
    return Misfit(
        missing=wanted.keys() - stored.keys(),
        left_over=stored.keys() - wanted.keys(),
        reshaped=[name for name in wanted if name in stored and stored[name] not in (None, wanted[name])],
    )


def check(path: str | os.PathLike[str], misfit: Misfit) -> None:
    """Raise ValueError if any weight is missing, left over or of another shape."""
    problems = {"missing": misfit.missing, "left over": misfit.left_over, "of another shape": misfit.reshaped}
    wrong = [f"{len(names)} {what} ({', '.join(sorted(names)[:3])} ..)" for what, names in problems.items() if names]
    if wrong:
        raise ValueError(
            f"{path}: the weights do not fit config.json: {'; '.join(wrong)}; use the files of one checkpoint"
        )


def without_zero_biases(misfit: Misfit, read: Callable[[str], torch.Tensor]) -> Misfit:
    """Return the Misfit of a GPTQ folder without the zero biases that its layout gives each linear that has none."""
    return misfit._replace(left_over=[name for name in misfit.left_over if not is_zero_bias(name, read)])


def is_zero_bias(name: str, read: Callable[[str], torch.Tensor]) -> bool:
    """Return whether a left-over tensor is the bias of a linear without one, and holds nothing but zeros."""
    return family.may_be_zero_bias(name) and not read(name).any()


def shapes(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Shape]:
    """Return the shapes of named tensors, such as the parameters of a model."""
    return {name: list(tensor.shape) for name, tensor in tensors}
