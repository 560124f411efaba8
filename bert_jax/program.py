"""What a compiled program does: its collectives, its memory traffic, its arrays.

XLA prints a compiled program as text. It is the one form in which all its back ends,
also those without a device, tell what one device is going to do.
"""

import collections
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

_KINDS = (
    "all-reduce all-gather reduce-scatter all-to-all collective-permute "
    "ragged-all-to-all collective-broadcast"
).split()
_COLLECTIVE = re.compile(rf"({'|'.join(_KINDS)})(-start)?")
_FREE = frozenset(  # that move no data
    "parameter constant tuple get-tuple-element bitcast while conditional call "
    "after-all partition-id replica-id optimization-barrier async-start".split()
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Collective(NamedTuple):
    """Something that a device does together with others.

    Attributes:
      kind: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all`,
        `collective-permute` and so on.
      times: it is done in a run of the program.
      bytes: of the whole array each time: what is reduced, what is gathered.
      elements: of the same array.
      group: the devices of one group, as numbers in the order of the mesh; empty
        where the program does not say.
      name: where in the model it comes from.
    """

    kind: str
    times: int
    bytes: int
    elements: int
    group: tuple[int, ...]
    name: str


class Array(NamedTuple):
    """An array that the program keeps in the main memory of a device."""

    bytes: int
    shape: str  # such as "bf16[24,16,512,1024]"
    name: str  # where in the model it comes from


class Program(NamedTuple):
    """What one device does in a run of a program."""

    collectives: tuple[Collective, ...]
    traffic: int  # [bytes] read from and written to the main memory
    largest: tuple[Array, ...]  # largest first
    relaid: tuple[Array, ...]  # transposed or copied into another order; the same
    calls: dict[str, int]  # kernels that XLA did not write: how often each runs


class _Instruction(NamedTuple):
    name: str
    shapes: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # the line from the operands on
    root: bool


_Computation = dict[str, _Instruction]


def read(text: str, largest: int = 5) -> Program:
    """Reads a compiled program.

    Loops count as often as they run. A collective that XLA runs in the background is
    counted once, and one that it has fused with the cut of its result as the
    `reduce-scatter` that it is.

    Args:
      text: `as_text()` of a compiled function.
      largest: how many arrays to name, of all and of those that change their order.

    Returns:
      The program; bytes are those of one device.
    """
    computations, entry = _parse(text)
    found: list[Collective] = []
    arrays: dict[tuple[str, str], Array] = {}
    relaid: list[Array] = []
    calls: collections.Counter[str] = collections.Counter()
    traffic = 0
    for name, times in _scheduled(computations, entry):
        computation = computations[name]
        seen: set[str] = set()
        for item in computation.values():
            found += _collectives(computations, computation, item, times, seen)
            traffic += times * _traffic(computations, computation, item)
            relaid += _relaid(computations, computation, item)
            if target := re.search(r'custom_call_target="([^"]*)"', item.rest):
                calls[target[1]] += times
            if item.opcode not in _FREE or (name == entry and not item.operands):
                place = _op_name(item)
                # A stack that a loop fills begins as zeros, under another name.
                if place and "broadcast" not in place:
                    for shape, size, _ in _arrays(item.shapes):
                        arrays.setdefault((shape, place), Array(size, shape, place))

    def ranked(arrays: Iterable[Array]) -> tuple[Array, ...]:
        return tuple(sorted(arrays, key=lambda array: -array.bytes)[:largest])

    large, moved = ranked(arrays.values()), ranked(relaid)
    return Program(tuple(found), traffic, large, moved, dict(calls))


def memory_asked(message: str, arguments: int) -> int | None:
    """Bytes that a program needs, from the error that it needs too many of them.

    Args:
      message: of the RESOURCE_EXHAUSTED error of a compiler.
      arguments: of the program, which some messages leave out. [bytes]

    Returns:
      Bytes, or None where the message does not say.
    """
    number = r"([\d.]+)([KMGT])"
    for pattern, more in (
        (rf"Used {number} of ", 0),
        (rf"temporaries \({number}\) exceeds available", arguments),
    ):
        if match := re.search(pattern, message):
            return int(float(match[1]) * _UNITS[match[2]]) + more
    return None


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    current: _Computation = {}
    entry = ""
    line_of = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
    for line in text.splitlines():
        if not line.startswith(" ") and line.endswith("{"):
            match = re.match(r"(ENTRY )?%?([\w.-]+)", line)
            if match and not line.startswith("HloModule"):
                current = computations.setdefault(match[2], {})
                entry = match[2] if match[1] else entry
        elif match := line_of.match(line):
            root, name, shapes, opcode, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.-]+)", rest.split(")")[0]))
            current[name] = _Instruction(
                name, shapes, opcode, operands, rest, bool(root)
            )
    return computations, entry


def _scheduled(
    computations: dict[str, _Computation], name: str, times: int = 1
) -> Iterator[tuple[str, int]]:
    """The computations that run one instruction after the other, and how often."""
    yield name, times
    for item in computations[name].values():
        if item.opcode == "while":
            (body,) = _called(item, "body")
            yield from _scheduled(
                computations, body, times * _trips(computations, item)
            )
        elif item.opcode in ("call", "conditional", "async-start"):
            for called in _called(item, "to_apply|calls|branch_computations"):
                yield from _scheduled(computations, called, times)


def _called(item: _Instruction, names: str) -> list[str]:
    match = re.search(rf"\b(?:{names})=(\{{[^}}]*\}}|%?[\w.-]+)", item.rest)
    return re.findall(r"[\w.-]+", match[1]) if match else []


def _trips(computations: dict[str, _Computation], loop: _Instruction) -> int:
    known = re.search(r"known_trip_count[^\d}]*(\d+)", loop.rest)
    if known:
        return int(known[1])
    # Otherwise its condition compares a counter, from 0, with the one constant.
    (condition,) = _called(loop, "condition")
    constants = [
        int(match[1])
        for item in computations[condition].values()
        if item.opcode == "constant" and (match := re.match(r"(\d+)\)", item.rest))
    ]
    return max(constants, default=1)


def _arrays(shapes: str) -> Iterator[tuple[str, int, bool]]:
    """Each array of a type: its shape, its bytes, whether the main memory holds it."""
    for dtype, sizes, layout in re.findall(
        r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?", shapes
    ):
        bits = re.search(r"\d+", dtype)
        each = int(bits[0]) if bits else 8  # pred
        count = math.prod(int(size) for size in sizes.split(",") if size)
        # Only TPUs tile, T(8,128), and their other memories, S(1), are on the chip.
        inside = "T(" in layout and "S(" in layout
        yield f"{dtype}[{sizes}]", count * each // 8, not inside


def _bytes(shapes: str) -> int:
    """Of the arrays that lie in the main memory."""
    return sum(size for _, size, outside in _arrays(shapes) if outside)


def _op_name(item: _Instruction) -> str:
    match = re.search(r'op_name="([^"]*)"', item.rest)
    return match[1].replace("\\", "") if match else ""


def _collectives(
    computations: dict[str, _Computation],
    computation: _Computation,
    item: _Instruction,
    times: int,
    seen: set[str],
) -> Iterator[Collective]:
    """What an instruction is or, if a fusion, contains."""
    if item.opcode == "fusion":
        (name,) = _called(item, "calls")
        for inner in computations[name].values():
            channel = re.search(r"channel_id=(\d+)", inner.rest)
            if not channel or not _COLLECTIVE.fullmatch(inner.opcode):
                continue
            # Begun in one fusion, ended in another, and named in those between.
            if channel[1] not in seen:
                seen.add(channel[1])
                found = _collectives(
                    computations, computations[name], inner, times, seen
                )
                scatter = name.startswith("all-reduce-scatter")
                yield from (
                    one._replace(kind="reduce-scatter") if scatter else one
                    for one in found
                )
        return
    match = _COLLECTIVE.fullmatch(item.opcode)
    if not match:
        return
    group = _group(item.rest)
    if len(group) == 1:
        return
    arrays = [
        (shape, size)
        for name in item.operands
        if name in computation
        for shape, size, _ in _arrays(computation[name].shapes)
    ]
    share = len(group) if match[1] == "all-gather" else 1
    elements = sum(
        math.prod(int(n) for n in re.findall(r"\d+", shape.split("[")[1]))
        for shape, _ in arrays
    )
    total = share * sum(size for _, size in arrays)
    yield Collective(match[1], times, total, share * elements, group, _op_name(item))


def _relaid(
    computations: dict[str, _Computation], computation: _Computation, item: _Instruction
) -> Iterator[Array]:
    """The arrays whose order an instruction changes, or the parts of a fusion."""
    if item.opcode == "fusion":
        parts = computations[_called(item, "calls")[0]]
        for part in parts.values():
            yield from _relaid(computations, parts, part)
    elif item.opcode in ("copy", "transpose"):
        before = computation[item.operands[0]].shapes
        axes = re.search(r"dimensions=\{([\d,]+)\}", item.rest)
        if _order(item.shapes, axes[1] if axes else "") != _order(before):
            for shape, size, _ in _arrays(item.shapes):
                yield Array(size, shape, _op_name(item))


def _order(array: str, axes: str = "") -> list[int]:
    """How its axes lie in memory, the innermost first, but for those of size 1.

    `f32[1,2,3]{2,1,0}` is 2, 1. `axes`: under which numbers to tell of them.
    """
    sizes, layout, *_ = *re.findall(r"[\[{]([\d,]*)", array), ""  # none of a number
    count, names = _numbers(sizes), _numbers(axes)
    found = [axis for axis in _numbers(layout) if count[axis] > 1]
    return [names[axis] for axis in found] if names else found


def _group(rest: str) -> tuple[int, ...]:
    """The first of the groups of devices, written in one of three ways.

    `{{0,1},{2,3}}`; `[2,2]<=[4]T(0)`, numbers arranged and cut into rows; or
    `mesh['a'=2,'b'=2] {'b'}`, all along some axes of a mesh.
    """
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return int(match[1]), int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(map(int, match[1].split(",")))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=(\S+?),? ", rest + " "):
        rows = _numbers(match[1])
        return tuple(_arranged(match[2]).reshape(rows)[0].tolist())
    if match := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", rest
    ):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        shape = [int(size) for size in sizes.values()]
        ids = _arranged(match[2]) if match[2] else np.arange(math.prod(shape))
        return _along(ids.reshape(shape), list(sizes), match[3])
    return ()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _arranged(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: 0 to 7 in two rows, transposed."""
    shape, _, order = text.partition("T")
    sizes = _numbers(shape)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_numbers(order)) if order else numbers


def _along(ids: np.ndarray, names: list[str], axes: str) -> tuple[int, ...]:
    """The devices along some axes, or parts `'a':(2)4` of axes, from the first one."""
    pick: list[slice] = [slice(1)] * ids.ndim
    for name, outer, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes):
        axis = names.index(name)
        if not size:
            pick[axis] = slice(None)
            continue
        inner = ids.shape[axis] // (int(outer) * int(size))
        pick[axis] = slice(0, inner * int(size), inner)
    return tuple(ids[tuple(pick)].ravel().tolist())


def _traffic(
    computations: dict[str, _Computation], computation: _Computation, item: _Instruction
) -> int:
    """Bytes that an instruction reads from and writes to the main memory."""
    opcode = item.opcode
    if opcode in _FREE or opcode.endswith("-done") or "AllocateBuffer" in item.rest:
        return 0
    sources = [
        computation[name].shapes for name in item.operands if name in computation
    ]
    if opcode in ("copy-start", "slice-start"):
        # (result, operand, context), or ((operand), result, context).
        _, size, outside = list(_arrays(item.shapes))[opcode == "slice-start"]
        read = size if sources and _bytes(sources[0]) else 0
        return read + (size if outside else 0)
    if opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _bytes(item.shapes)
    if opcode == "dynamic-update-slice":
        return 2 * _bytes(sources[1])
    if opcode == "fusion":
        (name,) = _called(item, "calls")
        return _Fusion(computations, name).traffic()
    return _bytes(item.shapes) + sum(map(_bytes, sources))


class _Fusion:
    """What a fusion reads and writes: of some arguments only slices, or one place."""

    def __init__(self, computations: dict[str, _Computation], name: str):
        self.computations, self.items = computations, computations[name]
        self.users = collections.defaultdict(list)
        for item in self.items.values():
            for operand in item.operands:
                self.users[operand].append(item)

    def traffic(self) -> int:
        """Bytes read from and written to the main memory."""
        arguments = [i for i in self.items.values() if i.opcode == "parameter"]
        reads = sum(self.read(i.name) for i in arguments if _bytes(i.shapes))
        (root,) = (item for item in self.items.values() if item.root)
        return reads + self.written(root)

    def read(self, name: str) -> int:
        """Bytes of a value that its users need, wherever it lies."""
        total = 0
        whole = sum(size for _, size, _ in _arrays(self.items[name].shapes))
        for item in self.users[name]:
            if item.opcode in ("dynamic-slice", "gather", "slice"):
                total += sum(size for _, size, _ in _arrays(item.shapes))
            elif item.opcode in ("bitcast", "reshape"):
                total += self.read(item.name)
            elif item.opcode == "fusion":
                inner = _Fusion(self.computations, _called(item, "calls")[0])
                number = f"{item.operands.index(name)})"
                (argument,) = (
                    i.name
                    for i in inner.items.values()
                    if i.opcode == "parameter" and i.rest.startswith(number)
                )
                total += inner.read(argument)
            elif item.opcode != "dynamic-update-slice" or item.operands[0] != name:
                return whole
        return min(total, whole)

    def written(self, item: _Instruction) -> int:
        """Bytes of a result that are new, where it lies in the main memory."""
        if item.opcode == "tuple":
            return sum(self.written(self.items[name]) for name in item.operands)
        if not _bytes(item.shapes):
            return 0
        if item.opcode in ("bitcast", "reshape"):
            return self.written(self.items[item.operands[0]])
        if item.opcode == "dynamic-update-slice":
            update = self.items[item.operands[1]].shapes
            return sum(size for _, size, _ in _arrays(update))
        return _bytes(item.shapes)
