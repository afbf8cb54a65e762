"""A device that is not there: tensors on it lie in this machine's memory, but say otherwise.

What a GPU refuses is refused: operations on tensors of two devices, and NumPy's view of one. What a
GPU makes the host wait for, its numbers and sizes that depend on them, is counted. So the way
through a search on a GPU is tested without one; how fast it is is not.

It is called `meta`, since torch lets no other device be named that it was not built for.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "meta"
CPU = torch.device("cpu")

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
WAITED_FOR = (
    aten._local_scalar_dense.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten._linalg_check_errors.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
)


class Elsewhere(torch.Tensor):
    """A tensor that says it is on the other device; `here` is its content."""

    here: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(DEVICE),
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} of a tensor on the other device, outside of `AnotherDevice`")

    def tolist(self) -> Any:
        return self.cpu().tolist()


class AnotherDevice(TorchDispatchMode):
    """Lets `DEVICE` be used.

    Attributes:
        n_operations: How many were started on it.
        n_waits: How often its results were waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n_operations = self.n_waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Elsewhere)]
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = CPU
            is_there = torch.device(target).type == DEVICE
        else:
            is_there = isinstance(args[0], Elsewhere) if func in COPIES else bool(there)
        if there or is_there:
            self.n_operations += 1
            self.n_waits += _is_waited_for(func, args, is_there)
        if there and func not in COPIES:
            _refuse_others(func, args, kwargs)
        found = func(*_mapped(_here, args), **_mapped(_here, kwargs))
        # What is changed in place is given back as it is.
        given = {id(tensor.here): tensor for tensor in there}

        def placed(value: Any) -> Any:
            if not is_there or not isinstance(value, torch.Tensor):
                return value
            return given[id(value)] if id(value) in given else Elsewhere(value)

        return _mapped(placed, found)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Return `value` with `function` of each leaf; torch's own way of this takes most of a test."""
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, each) for each in value])
    if isinstance(value, dict):
        return {key: _mapped(function, each) for key, each in value.items()}
    return function(value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value


def _here(value: Any) -> Any:
    return value.here if isinstance(value, Elsewhere) else value


def _is_waited_for(func: Any, args: Any, is_there: bool) -> bool:
    if func in COPIES:
        sources = [value for value in args[:2] if isinstance(value, torch.Tensor)]
        return isinstance(sources[-1], Elsewhere) != is_there
    if func in INDEXING:
        has_mask = any(index is not None and index.dtype == torch.bool for index in args[1])
        is_fill = len(args) > 2 and len(args[1]) == 1 and args[2].dim() == 0
        return has_mask and not is_fill
    return func in WAITED_FOR


def _refuse_others(func: Any, args: Any, kwargs: Any) -> None:
    """Raise where a tensor lies here, other than a single number or an index."""
    allowed = [id(index) for index in args[1]] if func in INDEXING else []
    for leaf in _leaves((args, kwargs)):
        is_here = isinstance(leaf, torch.Tensor) and not isinstance(leaf, Elsewhere)
        if is_here and leaf.dim() > 0 and id(leaf) not in allowed:
            raise RuntimeError(f"{func}: a tensor of shape {tuple(leaf.shape)} is on the CPU")
    if func._schema.is_mutable and not isinstance(args[0], Elsewhere):
        raise RuntimeError(f"{func} writes numbers of the other device to the CPU")


@contextlib.contextmanager
def another_device() -> Iterator[AnotherDevice]:
    """Let `DEVICE` be used, and count."""
    made = {name: getattr(torch, name) for name in ("tensor", "as_tensor")}
    modes = torch.inference_mode

    def making(make: Any) -> Any:
        # torch makes these without asking a dispatch mode.
        def moved(data: Any, *, dtype: Any = None, device: Any = None) -> torch.Tensor:
            found = make(data, dtype=dtype)
            return found if device is None else found.to(device)

        return moved

    try:
        for name, make in made.items():
            setattr(torch, name, making(make))
        torch.inference_mode = torch.no_grad  # whose views of such tensors torch can't make
        with AnotherDevice() as device:
            yield device
    finally:
        torch.inference_mode = modes
        for name, make in made.items():
            setattr(torch, name, make)
