"""What a compiled program sends between devices, counted in its HLO."""

import dataclasses
import math
import re

_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# `%name = (f32[3]{0}, f32[]) all-reduce(...)`, or `all-reduce-start`.
_INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?\S+ = (\(.*?\)|\S+) ({'|'.join(_KINDS)})(-start)?\(", re.MULTILINE
)
_ARRAY = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")
_BITS = re.compile(r"[a-z]+([0-9]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: such as ``"all-reduce"``.
      shapes: of the arrays that come out of it on each device.
      numbers: their elements in all.
      bytes: what these take.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    numbers: int
    bytes: int


def collectives(hlo: str) -> list[Collective]:
    """Those of a compiled module, ``Compiled.as_text()``, in the order of its text.

    One inside a loop is counted once, as it stands there.
    """
    return [_read(*match.groups()) for match in _INSTRUCTION.finditer(hlo)]


def _read(arrays: str, kind: str, start: str | None) -> Collective:
    found = _ARRAY.findall(arrays)
    if start and kind != "all-reduce":
        found = found[len(found) // 2 :]  # its operands come first
    shapes = tuple(tuple(map(int, filter(None, s.split(",")))) for _, s in found)
    sizes = list(map(math.prod, shapes))
    size_in_bytes = sum(n * _bytes(dtype) for n, (dtype, _) in zip(sizes, found))
    return Collective(kind, shapes, sum(sizes), size_in_bytes)


def _bytes(dtype: str) -> int:
    """Of one number: ``pred`` takes one byte, ``f32`` four."""
    bits = _BITS.fullmatch(dtype)
    return int(bits[1]) // 8 if bits else 1
