"""Records the outcome of each condition in upstream's code, and the operands it compared.

This uses Python's own tracing by bytecode instruction: a line may hold several conditions, and a module may come
without its source. It slows the watched code greatly, and is for split time only.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

# Before Python 3.12, following each instruction is slow, so only lines with conditions are followed in that way; from
# then on, a frame cannot change what it follows.
_BY_LINE = sys.version_info < (3, 12)
# Modules whose conditions count: upstream's models and their parts, including caches.
_PACKAGE = "mlx_lm.models."
# Most distinct decisions of a condition that are kept per step, and most instructions that are followed per call: a
# loop over positions meets the same conditions over and over.
_MAX_DECISIONS = 48
_MAX_INSTRUCTIONS = 20_000
# Longest text by which an operand is shown.
_MAX_TEXT = 60
# Functions that a condition may call, and that can be called again without side effects.
_PURE: dict[str, Callable[..., Any]] = {
    "len": len, "min": min, "max": max, "isinstance": isinstance, "hasattr": hasattr, "int": int, "abs": abs,
    "getattr": getattr, "bool": bool, "type": type,
}  # fmt: skip
_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "/": lambda a, b: a / b,
}

# Instructions without effect on the stack.
_NO_EFFECT = ("CACHE", "PRECALL", "RESUME", "NOP", "KW_NAMES", "TO_BOOL", "EXTENDED_ARG")

Number = int | float
# An operand of a condition: a number, a text, or the name of a type.
Operand = Number | str | None


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of a condition.

    Attributes:
        outcome: Whether the condition held.
        operands: The values compared, or the one value tested; None if unknown.
        moduli: Divisors of the numbers in it.
    """

    outcome: bool
    operands: tuple[Operand, ...] | None
    moduli: tuple[int, ...] = ()

    @property
    def difference(self) -> Number | None:
        """The left number minus the right one, or the number tested; None without numbers."""
        if self.operands is None or not all(_is_number(operand) for operand in self.operands):
            return None
        numbers: list[Any] = list(self.operands)
        difference: Number = numbers[0] - (numbers[1] if len(numbers) > 1 else 0)
        return difference


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """The place of a condition in the code.

    Attributes:
        module: Last part of the module's name.
        function: The function, with its class.
        line: Line in the module's source.
        offset: Offset of the instruction in the function.
    """

    module: str
    function: str
    line: int
    offset: int

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line} ({self.function})"


@dataclass(slots=True)
class Record:
    """The decisions of each condition by step; within a step each distinct one once, in order of first occurrence."""

    steps: list[dict[Place, dict[Decision, None]]] = field(default_factory=list)

    def begin(self) -> None:
        """Start a step."""
        self.steps.append({})

    def add(self, place: Place, decision: Decision) -> None:
        """Record a decision in the current step."""
        known = self.steps[-1].setdefault(place, {})
        if len(known) < _MAX_DECISIONS or all(each.outcome != decision.outcome for each in known):
            known[decision] = None

    def places(self) -> set[Place]:
        """Conditions that were met."""
        return {place for step in self.steps for place in step}

    def outcomes(self, place: Place) -> set[bool]:
        """All outcomes of a condition over all steps."""
        return {decision.outcome for step in self.steps for decision in step.get(place, ())}

    def depends_on_step(self, place: Place) -> bool:
        """Whether the operands of a condition differed between the steps that met it.

        Operands that are equal at all positions and lengths are the configuration, the kind of a cache, or whether the
        model trains or runs in a group. If the operands are unknown, the outcomes are compared.
        """
        seen = [frozenset((d.operands, d.outcome) for d in step[place]) for step in self.steps if place in step]
        return len(set(seen)) > 1


@contextmanager
def watching(record: Record) -> Iterator[None]:
    """Record every decision that upstream's model code takes in this thread inside the block.

    Debuggers and coverage tools do not see this code while it is watched.
    """
    before = sys.gettrace()
    # Python 3.12 traces no instructions unless a frame asked for them before tracing begins.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(_Watcher(record).on_call)
    try:
        yield
    finally:
        sys.settrace(before)


class _Watcher:
    def __init__(self, record: Record) -> None:
        self._record = record

    def on_call(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if event != "call":
            return None
        known = _conditions(frame)
        if not known.sites:
            return None
        sites, lines = known.sites, known.lines
        pending: list[tuple[_Site, _Evidence]] = []
        followed = 0

        def on_instruction(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal followed
            if event not in ("opcode", "line"):
                return on_instruction
            followed += 1
            if followed > _MAX_INSTRUCTIONS:
                frame.f_trace_opcodes = frame.f_trace_lines = False
                return None
            at = frame.f_lasti
            if pending:
                site, (operands, moduli) = pending.pop()
                outcome = (at == site.target) == site.jumps_if
                self._record.add(site.place, Decision(outcome, operands, moduli))
            if event == "line":  # comes before the line's first instruction
                frame.f_trace_opcodes = frame.f_lineno in lines
            elif (condition := sites.get(at)) is not None:
                evidence = _evidence(condition.expression, frame)
                if condition.target is not None:
                    pending.append((condition, evidence))
                elif (held := _compared(condition.expression[0], evidence[0])) is not None:
                    self._record.add(condition.place, Decision(held, *evidence))
            return on_instruction

        frame.f_trace = on_instruction  # before the next lines: Python 3.13 traces only a frame that has one
        frame.f_trace_lines = _BY_LINE
        frame.f_trace_opcodes = not _BY_LINE or frame.f_lineno in lines
        return on_instruction


@dataclass(frozen=True, slots=True)
class _Site:
    """A conditional jump: its target, the outcome on which it jumps, and the expression that decides.

    A comparison whose result is kept or returned has no target.
    """

    place: Place
    target: int | None
    jumps_if: bool
    expression: Any


@dataclass(frozen=True, slots=True)
class _Conditions:
    """A function's conditional jumps by offset, none outside upstream's models, and the lines that hold them."""

    code: CodeType
    sites: dict[int, _Site]
    lines: frozenset[int]


# By identity, because the hash of a code object reads all its content; the object is kept, and so is its identity.
_known: dict[int, _Conditions] = {}


def _conditions(frame: FrameType) -> _Conditions:
    code = frame.f_code
    if (known := _known.get(id(code))) is None:
        module = str(frame.f_globals.get("__name__", ""))
        conditions = _find(code, module.rpartition(".")[2]) if module.startswith(_PACKAGE) else ()
        sites = {site.place.offset: site for site in conditions}
        lines = {line for start, stop, line in code.co_lines() if any(start <= at < stop for at in sites)}
        known = _known[id(code)] = _Conditions(code, sites, frozenset(line for line in lines if line is not None))
    return known


def _find(code: CodeType, module: str) -> Iterator[_Site]:
    """Follow a function's stack from instruction to instruction, with expressions in place of values."""
    stack: list[Any] = []
    line = code.co_firstlineno
    instructions = [each for each in dis.get_instructions(code) if each.opname not in _NO_EFFECT]
    for index, instruction in enumerate(instructions):
        line = (instruction.positions.lineno if instruction.positions else None) or line
        if instruction.is_jump_target:
            stack.clear()
        name = instruction.opname
        if "JUMP" in name and "_IF_" in name:
            tested = _pop(stack)
            if name.endswith("NONE"):
                expression, jumps_if = ("is", tested, ("const", None)), not name.endswith("NOT_NONE")
            else:
                expression, jumps_if = tested, "_IF_TRUE" in name
            place = Place(module, code.co_qualname, line, instruction.offset)
            yield _Site(place, int(instruction.argval), jumps_if, expression)
            if name.endswith("OR_POP"):
                stack.clear()
            continue
        _follow(stack, instruction)
        follows = instructions[index + 1].opname if index + 1 < len(instructions) else ""
        if name == "COMPARE_OP" and not ("JUMP" in follows and "_IF_" in follows):
            yield _Site(Place(module, code.co_qualname, line, instruction.offset), None, True, stack[-1])


def _follow(stack: list[Any], instruction: dis.Instruction) -> None:
    """Apply one instruction to the stack; an unknown value is None."""
    name, value = instruction.opname, instruction.argval
    if name in ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_DEREF", "LOAD_CLASSDEREF"):
        stack.append(("local", value))
    elif name == "LOAD_FAST_LOAD_FAST":  # Python 3.13 loads and stores two at once
        stack.extend(("local", each) for each in value)
    elif name == "STORE_FAST_LOAD_FAST":
        _pop(stack)
        stack.append(("local", value[1]))
    elif name == "LOAD_CONST":
        stack.append(("const", value))
    elif name == "LOAD_GLOBAL":
        if instruction.arg is not None and instruction.arg & 1:
            stack.append(None)
        stack.append(("global", value))
    elif name == "LOAD_ATTR" and "NULL|" not in instruction.argrepr:
        stack.append(("attribute", _pop(stack), value))
    elif name == "BINARY_SUBSCR":
        index, of = _pop(stack), _pop(stack)
        stack.append(("item", of, index))
    elif name == "BINARY_OP":
        right, left = _pop(stack), _pop(stack)
        stack.append(("operation", instruction.argrepr, left, right))
    elif name in ("COMPARE_OP", "IS_OP", "CONTAINS_OP"):
        right, left = _pop(stack), _pop(stack)
        operator = {"IS_OP": "is", "CONTAINS_OP": "in"}.get(name) or str(value)
        compared = (operator, left, right)
        negated = name != "COMPARE_OP" and bool(instruction.arg)
        stack.append(("not", compared) if negated else compared)
    elif name == "UNARY_NOT":
        stack.append(("not", _pop(stack)))
    elif name == "CALL":
        arguments = [_pop(stack) for _ in range(int(instruction.arg or 0))][::-1]
        function, null = _pop(stack), _pop(stack)
        stack.append(("call", function, arguments) if null is None else None)
    elif name == "COPY":
        stack.append(stack[-value] if len(stack) >= value else None)
    elif name == "SWAP" and len(stack) >= value:
        stack[-1], stack[-value] = stack[-value], stack[-1]
    else:
        effect = dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
        for _ in range(max(0, -effect) + 1):
            _pop(stack)
        stack.extend([None] * (max(0, effect) + 1))


def _pop(stack: list[Any]) -> Any:
    return stack.pop() if stack else None


class _Unknown(Exception):
    """The value of an expression is unknown."""


# Operands of a condition, None if unknown, and divisors of the numbers in it.
_Evidence = tuple[tuple[Operand, ...] | None, tuple[int, ...]]
_COMPARISONS = ("<", "<=", "==", "!=", ">", ">=", "is", "in")


def _evidence(expression: Any, frame: FrameType) -> _Evidence:
    """The operands of a condition about to be decided, and its divisors."""
    while isinstance(expression, tuple) and expression[0] == "not":
        expression = expression[1]
    moduli: list[int] = []
    is_comparison = isinstance(expression, tuple) and expression[0] in _COMPARISONS
    sides = expression[1:3] if is_comparison else (expression,)
    try:
        operands = tuple([_operand(_value(side, frame, moduli)) for side in sides])
    except _Unknown:
        return None, tuple(moduli)
    except Exception:  # noqa: BLE001 - an upstream property that raises gives no operand
        return None, tuple(moduli)
    if is_comparison and expression[0] in ("is", "in"):  # the object's identity is irrelevant, its kind is not
        operands = tuple(operand if not _is_number(operand) else str(operand) for operand in operands)
    return operands, tuple(moduli)


def _compared(operator: str, operands: tuple[Operand, ...] | None) -> bool | None:
    """Whether a comparison of two numbers holds; None for other operands, such as arrays."""
    if operands is None or not all(_is_number(operand) for operand in operands):
        return None
    left, right = operands
    order: dict[str, Callable[[Any, Any], bool]] = {
        "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    }  # fmt: skip
    return order[operator](left, right) if operator in order else None


def _value(expression: Any, frame: FrameType, moduli: list[int]) -> Any:
    match expression:
        case ("const", value):
            return value
        case ("local", name) if name in frame.f_locals:
            return frame.f_locals[name]
        case ("global", name):
            builtins = frame.f_builtins
            return frame.f_globals[name] if name in frame.f_globals else builtins[name]
        case ("attribute", of, name):
            return getattr(_value(of, frame, moduli), name)
        case ("item", of, index):
            holder = _value(of, frame, moduli)
            if not isinstance(holder, tuple | list | dict):
                raise _Unknown
            return holder[_value(index, frame, moduli)]
        case ("operation", symbol, left, right) if symbol in _OPERATIONS:
            a, b = _value(left, frame, moduli), _value(right, frame, moduli)
            if not (_is_number(a) and _is_number(b)):
                raise _Unknown
            if symbol in ("%", "//") and isinstance(b, int):
                moduli.append(b)
            return _OPERATIONS[symbol](a, b)
        case ("call", ("global", name), arguments) if name in _PURE:
            return _PURE[name](*(_value(argument, frame, moduli) for argument in arguments))
    raise _Unknown


def _operand(value: Any) -> Operand:
    """What is recorded of a value: a number, a short text, or its type."""
    if value is None or _is_number(value):
        number: Number | None = value
        return number
    if isinstance(value, str):
        return repr(value)[:_MAX_TEXT]
    return f"<{type(value).__name__}>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
