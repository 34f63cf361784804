"""Counts in the HLO of a compiled program what it sends between devices."""

import math
import re
from typing import NamedTuple

# `%name = (f32[3]{0}, f32[]) all-reduce(...)`, or `all-reduce-start`.
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?\S+ = (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|"
    r"all-to-all|collective-permute|collective-broadcast)(-start)?\(",
    re.MULTILINE,
)
_SHAPE = re.compile(r"[a-z]+[0-9]*\[([0-9,]*)\]")


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
      kind: such as ``"all-reduce"``.
      shapes: of the arrays that come out of it on each device.
    """

    kind: str
    shapes: list[tuple[int, ...]]

    @property
    def numbers(self) -> int:
        """The elements of all the arrays."""
        return sum(map(math.prod, self.shapes))


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a module, ``Compiled.as_text()``, in the order of its text.

    One inside a loop is counted once.
    """
    return [_read(*match.groups()) for match in _INSTRUCTION.finditer(hlo)]


def _read(arrays: str, kind: str, start: str | None) -> Collective:
    shapes = _SHAPE.findall(arrays)
    if start and kind != "all-reduce":
        shapes = shapes[len(shapes) // 2 :]  # its operands come first
    sizes = (filter(None, shape.split(",")) for shape in shapes)
    return Collective(kind, [tuple(map(int, size)) for size in sizes])
