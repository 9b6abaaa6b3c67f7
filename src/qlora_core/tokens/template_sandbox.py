"""Run chat templates so that they reach only what they are given, make nothing large and do not take long.

jinja2's own sandbox keeps a template from Python's internals, but not from `{{ 'x' * 10**9 }}`. Here every operation
that could make much out of little is checked before it is done, so that no value is ever larger than a limit. Then no
single operation takes long, and the clock need only be checked now and then. Features that no chat template needs are
left out. Knows nothing of messages or tokens.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import html
import json
import re
import time
import types
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace, _PassArg, pass_context
from jinja2.visitor import NodeTransformer

LONGEST = 100_000  # characters in a template; the longest known has a third of that
ROOM = 1_000_000  # characters of output, or of any value, that are allowed beyond four times the size of the input
ALTOGETHER = 64 * ROOM  # characters in all values of one rendering together
SECONDS = 2.0  # processor time for a rendering; real time would blame the template for a busy or sleeping machine
LOOKS = 64  # operations between two checks of the clock
WIDEST = 10_000  # largest width, count or precision
BITS = 4096  # size of the largest integer
LARGE = 10_000  # characters; making a longer value takes so long that the clock is checked each time
LEAVES = 16  # so many texts joined by + directly for output need no check each: their sum is checked

SHOWN = 300  # characters shown of a refusal in the template's own words

# in a format: a width of five digits, or one that is an argument or a nested field
_WIDE = re.compile(r"\d{5,}|%[^a-zA-Z%]*\*|:[^{}]*\{")
_WIDE_DATE = re.compile(r"\d{4,}")


class LimitError(SecurityError):
    """The template makes too much, or takes too long."""


class Rendering(Context):
    """The variables of one rendering, and the resources that it has used."""

    ticks = 0
    made = 0
    began = 0.0

    @functools.cached_property
    def room(self) -> int:
        """Return the number of characters that a value may have."""
        return ROOM + 4 * size_of(self.parent.get("messages"), 1 << 62)

    def tick(self, size: int = 0) -> None:
        """Count an operation that makes `size` characters."""
        self.ticks += 1
        self.made += size
        if self.made > ALTOGETHER and self.made > ALTOGETHER // ROOM * self.room:
            raise LimitError(f"it makes more than {ALTOGETHER / 1e6:.0f} MB of text")
        if size > LARGE or not self.ticks % LOOKS:
            now = time.thread_time()
            self.began = self.began or now
            if now - self.began > SECONDS:
                raise LimitError(f"it takes more than {SECONDS:g} seconds")

    def foresee(self, size: int) -> None:
        """Refuse a value of `size` characters before it is made."""
        if size > ROOM and size > self.room:
            raise LimitError(f"it makes more than {ROOM / 1e6:.0f} MB of text")

    def admit(self, value: Any) -> Any:
        """Return a value that was made, if it is small enough."""
        size = len(value) if type(value) is str else size_of(value, ROOM) if isinstance(value, _CONTAINERS) else 0
        if size > ROOM:
            self.foresee(size_of(value, self.room))
        self.tick(size)
        return value


_CONTAINERS = (list, tuple, dict, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))


def size_of(value: Any, most: int) -> int:
    """Return the approximate number of characters of a value as text; stop counting beyond `most`."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 3 + 1
    if not isinstance(value, _CONTAINERS):
        return 1
    total = 2
    for part in chain(value, value.values()) if isinstance(value, dict) else value:
        total += 2 + size_of(part, most - total)
        if total > most:
            break
    return total


# Operators ------------------------------------------------------------------------------------------------------


def _refuse_large_numbers(*values: Any) -> None:
    for value in values:
        if isinstance(value, int) and value.bit_length() > BITS:
            raise LimitError(f"it reckons with numbers of more than {BITS} bits")


def _refuse_wide(*values: Any) -> None:
    if any(isinstance(value, int) and abs(value) > WIDEST for value in values):
        raise LimitError(f"it asks for a width or a count of more than {WIDEST}")


def _times(rendering: Rendering, left: Any, right: Any) -> None:
    if isinstance(right, (str, list)):
        left, right = right, left
    if isinstance(left, (str, list)) and isinstance(right, int):
        rendering.foresee(size_of(left, ROOM) * max(right, 0))
    elif not isinstance(left, (int, float, Undefined)):
        raise SecurityError(f"it multiplies a {type(left).__name__}")


def _power(_: Rendering, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > BITS:
        raise LimitError(f"it reckons with numbers of more than {BITS} bits")


def _percent(rendering: Rendering, left: Any, right: Any) -> None:
    if isinstance(left, str):
        _foresee_format(rendering, left, right)


def _foresee_format(rendering: Rendering, form: str, *values: Any) -> None:
    if _WIDE.search(form):
        raise LimitError(f"it asks for a width or a count of more than {WIDEST}")
    fields = form.count("%") + form.count("{")
    rendering.foresee(len(form) + fields * (WIDEST + sum(size_of(value, ROOM) for value in values)) if fields else 0)


_FORESIGHT: dict[str, Callable[[Rendering, Any, Any], None]] = {"*": _times, "**": _power, "%": _percent}


@pass_context
def _add(rendering: Rendering, left: Any, right: Any) -> Any:
    if not isinstance(left, str):
        _refuse_large_numbers(left, right)
        if isinstance(left, tuple):
            raise SecurityError("it adds up tuples")
    return rendering.admit(left + right)  # at most twice as large as a value that was admitted


@pass_context
def _concatenate(rendering: Rendering, *values: Any) -> str:
    rendering.foresee(sum(size_of(value, ROOM) for value in values))
    return rendering.admit("".join(map(_text, values)))


@pass_context
def _slice(rendering: Rendering, value: Any, start: Any, stop: Any, step: Any) -> Any:
    return rendering.admit(value[start:stop:step])


@pass_context
def _made(rendering: Rendering, value: Any) -> Any:
    if isinstance(value, tuple):  # a large one could be used as a key, which is slow
        _refuse_wide(size_of(value, WIDEST))
    return rendering.admit(value)


@pass_context
def _counted(rendering: Rendering, value: Any, weight: int = 0) -> Any:
    rendering.tick(weight)
    return value


@pass_context
def _each(rendering: Rendering, values: Iterable[Any], weight: int) -> Iterator[Any]:
    for value in values:
        rendering.tick(weight)
        yield value


@pass_context
def _written(rendering: Rendering, value: Any) -> Any:
    """Return what is to be written as text, and count it."""
    if type(value) is not str:
        value = _text(value)
    if len(value) > ROOM:
        rendering.foresee(len(value))
    rendering.tick(len(value))
    return value


def _text(value: Any) -> str:
    if value is None or isinstance(value, (str, int, float, Undefined, *_CONTAINERS)):
        return str(value)
    raise SecurityError(f"it writes a {type(value).__name__}, which is no text")


class _Guard(NodeTransformer):
    """Inserts the checks into a template."""

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        node.nodes = [self._spared(part) if len(_leaves(part)) <= LEAVES else self.visit(part) for part in node.nodes]
        return node

    def _spared(self, node: nodes.Expr) -> nodes.Expr:
        if isinstance(node, nodes.Add):
            node.left, node.right = self._spared(node.left), self._spared(node.right)
            return node
        return self.visit(node)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node.left, "(add)", node.right)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node.nodes[0], "(concatenate)", *node.nodes[1:])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _filtered(node.node, "(slice)", *(bound or nodes.Const(None, lineno=node.lineno) for bound in bounds))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Count comparisons of two values that may be large, since those take long; most are with a constant."""
        self.generic_visit(node)
        within = any(operand.op in ("in", "notin") for operand in node.ops)
        if not all(_small(operand.expr) or (not within and _small(node.expr)) for operand in node.ops):
            node.expr = _filtered(node.expr, "(counted)")
        return node

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return node if _constant(node) or getattr(node, "ctx", "load") != "load" else _filtered(node, "(made)")

    visit_Tuple = visit_Dict = visit_List

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateError("a loop that is recursive")
        weight = _weight(node)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "(each)", weight)
        return node

    def visit_Macro(self, node: Any) -> nodes.Node:
        weight = _weight(node)
        self.generic_visit(node)
        count = _filtered(nodes.Const(None, lineno=node.lineno), "(counted)", weight)
        node.body.insert(0, nodes.ExprStmt(count, lineno=node.lineno))
        return node

    visit_CallBlock = visit_Block = visit_Macro

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:
        raise TemplateError("a block that escapes what is in it")


def _filtered(node: nodes.Expr, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


def _leaves(node: nodes.Node) -> list[nodes.Node]:
    return [*_leaves(node.left), *_leaves(node.right)] if isinstance(node, nodes.Add) else [node]


def _weight(node: nodes.Node) -> nodes.Const:
    """Return the number of characters of text in a part of the template."""
    return nodes.Const(sum(len(data.data) for data in node.find_all(nodes.TemplateData)), lineno=node.lineno)


def _small(node: nodes.Node) -> bool:
    return _constant(node) or isinstance(node, (nodes.Compare, nodes.Not, nodes.Test))


def _constant(node: nodes.Node) -> bool:
    parts = node.items if isinstance(node, (nodes.List, nodes.Tuple)) else [node]
    return all(isinstance(part, nodes.Const) for part in parts)


# Filters --------------------------------------------------------------------------------------------------------

_KEPT_FILTERS = (
    "abs", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "first", "float", "format", "groupby",
    "indent", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace",
    "reverse", "round", "select", "selectattr", "slice", "sort", "string", "sum", "title", "trim", "truncate",
    "unique", "upper", "wordcount",
)  # fmt: skip
"""The others of jinja2's filters write HTML, are random, or have no use in a chat template."""
_WIDE_FILTERS = ("batch", "center", "indent", "round", "slice", "truncate")
_SLOW_TESTS = ("==", "!=", "<", "<=", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan",
               "lt", "ne")  # fmt: skip


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter or a test that checks its arguments before, and its result after, the one of jinja2's."""
    passed = _PassArg.from_obj(function)
    if passed is None and name not in (*_WIDE_FILTERS, *_FILTER_FORESIGHT):

        @pass_context
        def run_plain(rendering: Rendering, value: Any, *arguments: Any, **named: Any) -> Any:
            return rendering.admit(function(value, *arguments, **named))

        return run_plain

    @pass_context
    def run(rendering: Rendering, value: Any, *arguments: Any, **named: Any) -> Any:
        if name in _WIDE_FILTERS:
            _refuse_wide(*arguments, *named.values())
        if look := _FILTER_FORESIGHT.get(name):
            look(rendering, value, *arguments, **named)
        first = {
            None: (),
            _PassArg.context: (rendering,),
            _PassArg.eval_context: (rendering.eval_ctx,),
            _PassArg.environment: (rendering.environment,),
        }[passed]
        return rendering.admit(function(*first, value, *arguments, **named))

    return run


def _foresee_replace(rendering: Rendering, text: Any, old: Any, new: Any, count: int | None = None) -> None:
    rendering.foresee(_replaced(str(text), str(old), str(new)))


def _replaced(text: str, old: str, new: str) -> int:
    return len(text) + text.count(old) * len(new)


def _foresee_indent(rendering: Rendering, text: str, width: Any = 4, first: bool = False, blank: bool = False) -> None:
    text = str(text)
    width = len(width) if isinstance(width, str) else int(width)
    rendering.foresee(len(text) + (len(text.splitlines()) + 1) * width)


def _foresee_sum(rendering: Rendering, values: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise SecurityError(f"it adds up to a {type(start).__name__}")


_FILTER_FORESIGHT: dict[str, Callable[..., None]] = {
    "format": lambda rendering, form, *values, **named: _foresee_format(rendering, str(form), values, named),
    "indent": _foresee_indent,
    "replace": _foresee_replace,
    "sum": _foresee_sum,
}


@pass_context
def _join(rendering: Rendering, values: Iterable[Any], between: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = map(make_attrgetter(rendering.environment, attribute), values)
    return _joined(rendering, _text(between), values)


def _joined(rendering: Rendering, between: str, values: Iterable[Any]) -> str:
    texts, total = [], 0
    for value in values:
        texts.append(_text(value))
        total += len(texts[-1]) + len(between)
        rendering.foresee(total)
    return rendering.admit(between.join(texts))


@pass_context
def _to_json(
    rendering: Rendering,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON, with the options that transformers gives this filter."""
    _refuse_wide(indent, *map(len, separators or ()))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    pieces, total = [], 0
    for piece in encoder.iterencode(value):
        pieces.append(piece)
        total += len(piece)
        rendering.foresee(total)
    return rendering.admit("".join(pieces))


# What can be called ---------------------------------------------------------------------------------------------

_TEXT_METHODS = {
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "swapcase", "title", "upper",
}  # fmt: skip
"""Methods of a text with a result that is hardly longer than the text."""
_CONTAINER_METHODS = {"copy", "count", "get", "index", "items", "keys", "values"}
_PADDING = {"center", "expandtabs", "ljust", "rjust", "zfill"}


class _Namespace(Namespace):
    """A namespace whose text does not contain that of its values."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Generation(Extension):
    """`{% generation %}`, with which transformers marks what a model should learn: a block that writes its contents.

    No other tag makes a `Scope`, so these blocks can be recognised by it.
    """

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> nodes.Node:
        """Read the block."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with limits."""

    context_class = Rendering
    intercepted_binops = frozenset({"*", "**", "%", "/", "//", "-"})  # the guard inserts the checks of +

    def __init__(self) -> None:
        extensions = [loopcontrols, _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_written)
        kept = {name: _guarded(name, self.filters[name]) for name in _KEPT_FILTERS}
        guards = {"(add)": _add, "(concatenate)": _concatenate, "(slice)": _slice, "(made)": _made,
                  "(counted)": _counted, "(each)": _each}  # fmt: skip
        # there is no HTML here, so all text is safe
        plain = dict.fromkeys(("safe", "e", "escape", "forceescape"), kept["string"])
        plain["e"] = plain["escape"] = plain["forceescape"] = _guarded("escape", _escaped)
        self.filters = {**kept, **guards, **plain, "join": _join, "tojson": _to_json}
        self.tests |= {name: _guarded(name, self.tests[name]) for name in _SLOW_TESTS}
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace

    def call_binop(self, context: Rendering, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator, if the result is not too large."""
        if isinstance(left, int) or isinstance(right, int):
            _refuse_large_numbers(left, right)
        if look := _FORESIGHT.get(operator):
            look(context, left, right)
        return context.admit(self.binop_table[operator](left, right))

    def call(__self, __context: Rendering, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Make a call, if the result is not too large."""
        if isinstance(__obj, types.BuiltinMethodType):
            owner, name = __obj.__self__, __obj.__name__
            for hidden in ("_loop_vars", "_block_vars"):  # meant for jinja2 itself
                kwargs.pop(hidden, None)
            if type(owner) is str and name in _TEXT_METHODS:
                return __context.admit(__obj(*args, **kwargs))
            if type(owner) is str and name == "join":
                return _joined(__context, owner, *args, **kwargs)
            _look_at_method(__context, owner, name, args)
        return __context.admit(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return `str.format` with a check that the result is not too large."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @pass_context
        def run(rendering: Rendering, *arguments: Any, **named: Any) -> str:
            _foresee_format(rendering, value.__self__, arguments, named)
            return wrapped(*arguments, **named)

        return run


def _look_at_method(rendering: Rendering, owner: Any, name: str, arguments: tuple[Any, ...]) -> None:
    """Refuse a method that is not known to be harmless.

    Raises:
        LimitError: it would make too much.
        SecurityError: it is not known.
    """
    if type(owner) is str:
        if name in _PADDING:
            _refuse_wide(*arguments)
            rendering.foresee((owner.count("\t") + 1) * WIDEST if name == "expandtabs" else 0)
        elif name == "replace" and all(isinstance(argument, str) for argument in arguments[:2]):
            rendering.foresee(_replaced(owner, *arguments[:2]))
        else:
            raise SecurityError(f"it calls {name} of a text")
    elif not isinstance(owner, (*_CONTAINERS, range)) or name not in _CONTAINER_METHODS:
        raise SecurityError(f"it calls {name} of a {type(owner).__name__}")


def _escaped(value: Any) -> str:
    return html.escape(_text(value))


# Templates ------------------------------------------------------------------------------------------------------


def parse(text: str) -> nodes.Template:
    """Parse a template.

    Raises:
        TemplateError: it is not a template, or one too long.
    """
    if len(text) > LONGEST:
        raise TemplateError(f"it has {len(text)} characters; at most {LONGEST} are read")
    with _as_template_error():
        return _sandbox().parse(text)


def build(tree: nodes.Template) -> Template:
    """Compile a template for `render`; this changes `tree`.

    Raises:
        TemplateError: it uses something that is left out here, or is nested too deeply.
    """
    with _as_template_error():
        guarded = _Guard().visit(tree)
        guarded.set_environment(_sandbox())
        return _sandbox().from_string(guarded)


def render(template: Template, **names: Any) -> str:
    """Return what a template writes.

    Raises:
        LimitError: it writes too much, or takes too long.
        Exception: a template is an untrusted program and may raise anything.
    """
    text = template.render(**names)
    if len(text) > ROOM and len(text) > ROOM + 4 * size_of(names.get("messages"), len(text)):
        raise LimitError(f"it writes more than {ROOM / 1e6:.0f} MB of text")
    text.encode()  # raises if there is a lone surrogate, which would make the tokeniser fail
    return text


@contextlib.contextmanager
def _as_template_error() -> Iterator[None]:
    """Turn whatever goes wrong while a template is read into a `TemplateError`: it is the template's fault."""
    try:
        yield
    except TemplateError:
        raise
    except Exception as error:  # a number of too many digits, brackets nested too deeply, …
        raise TemplateError(str(error) or type(error).__name__) from None


@functools.cache
def _sandbox() -> Sandbox:
    def raise_exception(message: Any) -> None:
        raise TemplateError(_text(message)[:SHOWN])

    def strftime_now(form: str) -> str:
        _refuse_wide(len(form))
        if _WIDE_DATE.search(form):
            raise LimitError(f"it asks for a width or a count of more than {WIDEST}")
        # always the same date: the current one would change the tokens of a resumed run
        return datetime.date(2024, 7, 26).strftime(form)

    made = Sandbox()
    made.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return made
