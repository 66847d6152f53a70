"""Parts of a model by its structure, for UNets, transformers and adapters in them.

Two things are looked at: of what kind a layer is, and where it stands.

A **block** is an element of the model's own lists of modules (`down_blocks`, `transformer_blocks`),
or a module beside these lists that has lists in it (a UNet's `mid_block`). Blocks in which nothing
is trained, such as those that an adapter leaves alone, do not count. Blocks stand in the order in
which the model runs them, and what stands in no block comes before the first of them or after
the last. A block's **depth** is its distance from the nearer end: in a UNet blocks of one depth are
those of one resolution.

An adapter's parameters belong where the layer is that they change.

A new part is a function and a line in `PARTS`; docs/models.md and the help of `--params` name it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from gradindex.errors import CallError
from gradindex.gradients.parameter_order import order_of_use
from gradindex.models.denoiser import Denoiser

ALL, NORMS = "all", "norms"
LEVEL = re.compile(r"level-([0-9]{1,6})")
NORMALIZATIONS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
NORM, ATTENTION, CONVOLUTION, OTHER = "norm", "attention", "convolution", "other"  # kinds of layers
# What the layers are called by which attention makes its queries, or all of query, key and value.
QUERIES = re.compile(r"(to_)?(q|query|qkv)(_proj)?")


def is_part(text: str) -> bool:
    """Return whether a text names a part, and is no regular expression.

    >>> is_part("norms"), is_part("level-0"), is_part("norm"), is_part("^norms")
    (True, True, False, False)
    """
    return text in PARTS or LEVEL.fullmatch(text) is not None


def part_names(denoiser: Denoiser, part: str) -> list[str]:
    """Return the trainable parameters of a part, in the model's order.

    Args:
        part: a key of `PARTS`, or "level-K".

    Raises:
        CallError: the model has none of that part, or there is no part of that name.
    """
    structure = Structure(denoiser)
    if part in PARTS:
        names = set(PARTS[part](structure))
    elif level := LEVEL.fullmatch(part):
        names = set(_level(structure, int(level[1])))
    else:
        raise CallError(f"params = {part!r}: no part of a model; {parts_text(denoiser)}")
    chosen = [name for name in denoiser.trainable if name in names]
    if not chosen:
        why = "belongs there"
        if part == NORMS:
            why = "is a norm's own (adaptive norms have a linear layer in their place)"
        raise CallError(
            f"params = {part!r}: of the {len(denoiser.trainable)} parameters none {why};"
            f" {parts_text(denoiser)}"
        )
    return chosen


def parts_text(denoiser: Denoiser) -> str:
    """Return which parts a model has, such as "this UNet2DModel has all, norms, …"."""
    structure = Structure(denoiser)
    has = [name for name, rule in PARTS.items() if any(rule(structure))]
    levels = (len(structure.blocks) + 1) // 2
    if levels:
        has.append("level-0" if levels == 1 else f"level-0 … level-{levels - 1}")
    return f"this {type(denoiser.model).__name__} has {', '.join(has)}"


class Structure:
    """What is known of a model's structure: kinds of layers, blocks and their order."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.model: nn.Module = denoiser.model
        self.trainable: Sequence[str] = denoiser.trainable

    @cached_property
    def blocks(self) -> list[str]:
        """Paths of the blocks with trainable parameters, in the order in which they run."""
        used = [
            path
            for path in _block_paths(self.model)
            if any(name in self._uses for name in self.inside(path))
        ]
        return sorted(used, key=self.first_use)

    @property
    def middle(self) -> int:
        """The number of the block farthest from input and output; of two the later one."""
        return len(self.blocks) // 2

    def inside(self, path: str) -> Iterator[str]:
        """Yield the trainable parameters inside a module."""
        return (name for name in self.trainable if name.startswith(f"{path}."))

    def first_use(self, path: str) -> int:
        """Return when a module's first parameter is used, as a number in the order of use."""
        uses = (use for name, use in self._uses.items() if name.startswith(f"{path}."))
        return min(uses, default=len(self._uses))

    def outside(self, after: bool) -> Iterator[str]:
        """Yield the trainable parameters of no block, used after the last or before the first."""
        if not self.blocks:
            return
        blocks = tuple(f"{path}." for path in self.blocks)
        start, end = self.first_use(self.blocks[0]), self.first_use(self.blocks[-1])
        for name in self.trainable:
            use = self._uses.get(name)
            if use is None or name.startswith(blocks):
                continue
            if use > end if after else use < start:
                yield name

    def of_kind(self, kind: str) -> Iterator[str]:
        """Yield the trainable parameters of layers of a kind."""
        return (name for name in self.trainable if self._kind(name) == kind)

    @cached_property
    def _uses(self) -> dict[str, int]:
        """{parameter: its number in the order of use}."""
        return {name: number for number, name in enumerate(order_of_use(self._denoiser))}

    def _kind(self, name: str) -> str:
        """The kind of the layer that a parameter belongs to, or that it changes."""
        modules = _modules_above(self.model, name)
        changed = [module for module in modules if _base_layer(module) is not None]
        layer: Any = _base_layer(changed[0]) if changed else modules[0]
        if _is_norm(layer):
            return NORM
        if any(map(_is_attention, modules)):
            return ATTENTION
        return CONVOLUTION if isinstance(layer, nn.modules.conv._ConvNd) else OTHER


def _block_paths(model: nn.Module, prefix: str = "") -> list[str]:
    """Paths of a model's blocks, in the order in which they are registered."""
    paths = []
    lists = [child for _, child in model.named_children() if isinstance(child, nn.ModuleList)]
    for name, child in model.named_children():
        path = prefix + name
        if isinstance(child, nn.ModuleList):
            paths += [f"{path}.{number}" for number in range(len(child))]
        elif any(isinstance(module, nn.ModuleList) for module in child.modules()):
            # A model in a wrapper has its lists one step further down.
            paths += [path] if lists else _block_paths(child, f"{path}.")
    return paths


def _modules_above(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that a parameter is in, the nearest first and the model last."""
    modules = [model]
    for step in name.split(".")[:-1]:
        modules.append(modules[-1].get_submodule(step))
    return modules[::-1]


def _base_layer(module: nn.Module) -> nn.Module | None:
    """The layer that a PEFT layer changes; None for other modules."""
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, nn.Module) else None


def _is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalizes: torch's, or one that is called so and has no layers in it.

    An adaptive norm has: what its linear layer learns is more than a scale and a shift.
    """
    is_called_so = "norm" in type(layer).__name__.lower()
    return isinstance(layer, NORMALIZATIONS) or (is_called_so and not any(layer.children()))


def _is_attention(module: nn.Module) -> bool:
    """Whether a module has layers for query, key and value."""
    names = (name for name, _ in module.named_children())
    return isinstance(module, nn.MultiheadAttention) or any(map(QUERIES.fullmatch, names))


def _biases(structure: Structure) -> Iterator[str]:
    """Yield all biases, those of norms too."""
    return (name for name in structure.trainable if name.endswith(("bias", "_bias")))


def _blocks(structure: Structure, start: int, stop: int | None = None) -> Iterator[str]:
    """Yield the parameters of the blocks start … stop − 1."""
    for path in structure.blocks[start:stop]:
        yield from structure.inside(path)


def _with_output(structure: Structure, start: int) -> Iterator[str]:
    """Yield the parameters of the blocks from `start` on, and of the output layers."""
    yield from _blocks(structure, start)
    yield from structure.outside(after=True)


def _last_unit(structure: Structure) -> Iterator[str]:
    """Yield the parameters of the last block's last unit, and of the output layers.

    Units are the elements of the block's own lists, such as residual layers; a block without lists,
    as transformers have them, is one.
    """
    if structure.blocks:
        block = structure.blocks[-1]
        units = [
            f"{block}.{name}.{number}"
            for name, child in structure.model.get_submodule(block).named_children()
            if isinstance(child, nn.ModuleList)
            for number in range(len(child))
        ]
        trained = [unit for unit in units if any(structure.inside(unit))]
        yield from structure.inside(max(trained, key=structure.first_use, default=block))
    yield from structure.outside(after=True)


def _level(structure: Structure, depth: int) -> Iterator[str]:
    """Yield the parameters of the blocks of one depth."""
    last = len(structure.blocks) - 1
    for number, path in enumerate(structure.blocks):
        if min(number, last - number) == depth:
            yield from structure.inside(path)


PARTS: dict[str, Callable[[Structure], Iterator[str]]] = {
    ALL: lambda structure: iter(structure.trainable),
    # By the kind of the layer; no parameter is in two of them.
    NORMS: lambda structure: structure.of_kind(NORM),
    "attention": lambda structure: structure.of_kind(ATTENTION),
    "convolutions": lambda structure: structure.of_kind(CONVOLUTION),
    "biases": _biases,
    # By place.
    "first": lambda structure: structure.outside(after=False),
    "middle": lambda structure: _blocks(structure, structure.middle, structure.middle + 1),
    "second-half": lambda structure: _with_output(structure, (len(structure.blocks) + 1) // 2),
    "last-block": lambda structure: _with_output(structure, -1),
    "last-unit": _last_unit,
    "last": lambda structure: structure.outside(after=True),
}
