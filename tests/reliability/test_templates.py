"""Chat templates that mean harm: they reach nothing, make nothing large and do not take long."""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import processes
import pytest

from qlora_core.errors import DataError, ModelError
from qlora_core.tokens import template_sandbox
from qlora_core.tokens.chat_template import ChatTemplate
from qlora_core.tokens.conversations import Conversation
from qlora_core.tokens.dataset import make_dataset
from qlora_core.tokens.tokenizer import ChatTokenizer

MESSAGES = [
    {"role": "user", "content": "Who is 'Ana'?"},
    {"role": "assistant", "content": "A goalkeeper."},
]
MEMORY = 1 << 30  # bytes that a process that renders may address; it needs a tenth of them

# Ways out of the sandbox, as published for Jinja2, Flask and chat templates -----------------------------------------

REACHES = [
    "''.__class__",
    "''.__class__.__mro__[1].__subclasses__()",
    "''['__class__']['__mro__']",
    "''|attr('__class__')",
    "''|attr('__cla' ~ 'ss__')",
    "''|attr('\\x5f\\x5fclass\\x5f\\x5f')",
    "''['\\x5f\\x5fclass\\x5f\\x5f']",
    "[].__class__.__base__.__subclasses__()",
    "().__class__.__bases__[0].__subclasses__()[40]('/etc/passwd').read()",
    "{}.__class__.__base__",
    "cycler.__init__.__globals__.os.popen('id').read()",
    "joiner.__init__.__globals__.os.popen('id').read()",
    "namespace.__init__.__globals__.os.popen('id').read()",
    "lipsum.__globals__.os.popen('id').read()",
    "lipsum.__globals__['os'].system('id')",
    "self.__init__.__globals__.__builtins__",
    "self._TemplateReference__context.cycler.__init__.__globals__.os",
    "self._TemplateReference__context.environment",
    "raise_exception.__globals__",
    "raise_exception.__code__.co_consts",
    "strftime_now.__globals__.sys.modules",
    "strftime_now.__closure__",
    "range.__class__.__subclasses__(range)",
    "dict.__base__.__subclasses__()",
    "dict.mro()",
    "dict.fromkeys('a').__class__",
    "messages.__class__.__init__.__globals__",
    "messages[0].__class__",
    "messages[0].content.__class__.__mro__",
    "messages.append({'role': 'user', 'content': 'x'})",
    "messages.pop()",
    "messages.clear()",
    "messages[0].update({'role': 'system'})",
    "messages[0].setdefault('x', 1)",
    "messages[0].pop('content')",
    "loop",
    "config.__class__.__init__.__globals__['os'].popen('id').read()",
    "request.application.__globals__.__builtins__.__import__('os')",
    "url_for.__globals__.current_app",
    "get_flashed_messages.__globals__",
    "'{0.__class__}'.format(0)",
    "'{0.__class__.__mro__}'.format('')",
    "'{a.__init__.__globals__}'.format(a=cycler)",
    "'{0.__class__}'.format_map({'0': ''})",
    "('{0.__class__}'|attr('format'))(0)",
    "['{0.__class__.__base__}']|map('format', '')|list|first",
    "['{0.__class__}']|map(attribute='format')|first",
    "'%(__class__)s'|format(__class__=''.__class__)",
    "messages|map(attribute='__class__')|list",
    "messages|groupby('__class__')",
    "messages|sort(attribute='__class__')|first",
    "messages|selectattr('__class__.__base__')|list|length == 2",
    "x.__init__.__globals__.__builtins__.open('/etc/passwd').read()",
    "undefined_name.__class__.__init__",
    "(undefined_name|default).__init__.__globals__",
    "caller.__globals__",
    "''.join.__self__.__class__",
    "''.upper.__reduce_ex__(2)",
    "''.encode('rot13')",
    "(1).__class__",
    "(1).to_bytes(10)",
    "1.5.__class__.fromhex('0x1')",
    "true.__class__.__base__.__subclasses__()",
    "none.__class__",
    "''.translate({0: 1})",
    "''.maketrans('a', 'b')",
    "range(3).__reduce__()",
    "[namespace(a=1)]|map(attribute='_Namespace__attrs')|list",
    "namespace(a=1)._Namespace__attrs",
    "cycler(1).items",
]
BLOCKS = [
    "{% import os %}{{ os }}",
    "{% import 'os' as os %}{{ os.popen }}",
    "{% from 'os' import popen %}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{% macro m() %}{{ m.__globals__ }}{{ m.__init__ }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ caller._func }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for m in messages %}{{ loop._iterable }}{% endfor %}",
    "{% set x = cycler.__init__ %}{{ x.__globals__ }}",
    "{% with a = ''.__class__ %}{{ a.__mro__ }}{% endwith %}",
    "{% set messages[0].role = 'system' %}",
    "{% block b %}{{ self.b.__globals__ }}{% endblock %}",
    "{% block b %}{{ super.__init__.__globals__ }}{% endblock %}",
    "{% filter attr('__class__') %}x{% endfilter %}",
    "{% autoescape true %}{{ '<'|safe.__class__ }}{% endautoescape %}",
    "{% debug %}",
    "{% do messages.append(1) %}",
]
TELLTALE = ("<class", "<function", "<module", "<built-in", "root:", "uid=", "subclasses", "builtins", "object at 0x")


@pytest.mark.parametrize("text", [*(f"{{{{ {reach} }}}}" for reach in REACHES), *BLOCKS])
def test_no_way_out_of_the_sandbox(text: str) -> None:
    messages = json.loads(json.dumps(MESSAGES))
    try:
        written = ChatTemplate(text, "<s>", "</s>").render(messages)
    except (template_sandbox.TemplateError, DataError):
        written = ""
    assert messages == MESSAGES
    assert not any(word in written for word in TELLTALE), written
    assert len(written) < 100


# Templates that make much of little ---------------------------------------------------------------------------------

GROWTH = {
    "a text many times": "{{ 'x' * 10**9 }}",
    "a list many times": "{{ [0] * 10**9 }}",
    "a list of a long text": "{% set x = 'x' * 900000 %}{{ [x] * 100000 }}",
    "a tuple many times": "{{ ((1,) * 10**9)|length }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a power of a power": "{% set x = 9 ** 999 %}{{ x ** x }}",
    "squares": "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "a long number divided": "{% set x = ('f' * 900000)|int(base=16) %}{{ x // (x - 1) }}",
    "doubled": "{% set x = 'x' %}" + "{% set x = x + x %}" * 60 + "{{ x|length }}",
    "doubled by ~": "{% set x = 'x' %}" + "{% set x = x ~ x %}" * 60 + "{{ x|length }}",
    "doubled lists": "{% set x = [1] %}" + "{% set x = x + x %}" * 60 + "{{ x|length }}",
    "doubled in a loop": "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "lists of lists": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "lists compared": "{% set x = [1] %}{% set y = [1] %}"
    + "{% set x = [x, x] %}{% set y = [y, y] %}" * 40 + "{{ x == y }}",
    "a key of tuples": "{% set x = (1, 2) %}" + "{% set x = (x, x) %}" * 40 + "{{ {x: 1}|length }}",
    "dictionaries": "{% set x = {} %}" + "{% set x = dict(a=x, b=x) %}" * 60 + "{{ x|tojson }}",
    "namespaces": "{% set x = namespace() %}" + "{% set x = namespace(a=x, b=x) %}" * 60 + "{{ [x] }}",
    "padded": "{{ 'x'.center(10**9) }}{{ 'x'.ljust(10**9) }}",
    "filled with zeros": "{{ '7'.zfill(10**9) }}",
    "tabs": "{{ ('\t' * 10000).expandtabs(10000) }}",
    "centred": "{{ 'x'|center(10**9) }}",
    "indented": "{{ ('x\n' * 100000)|indent(10000) }}",
    "indented by a text": "{{ ('x\n' * 100000)|indent('x' * 100000) }}",
    "replaced": "{{ ('x' * 500000).replace('x', 'y' * 500000) }}",
    "replaced by the filter": "{{ ('x' * 500000)|replace('x', 'y' * 500000) }}",
    "nothing replaced": "{{ ('x' * 500000).replace('', 'y' * 500000) }}",
    "joined": "{{ ('y' * 500000).join('x' * 500000) }}",
    "joined by the filter": "{{ range(100000)|join('y' * 500000) }}",
    "joined attributes": "{% set n = namespace(a='x' * 900000) %}{{ ([n] * 100000)|join(attribute='a') }}",
    "mapped": "{{ range(100000)|map('replace', 'x', 'y')|map('center', 9999)|join }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a width given": "{{ '%*d' % (1000000000, 1) }}",
    "a width of the filter": "{{ '%1000000000d'|format(1) }}",
    "a precision": "{{ '%.999999999f' % 1.5 }}",
    "many fields": "{{ ('%s' * 100000) % ([messages] * 100000) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format in format": "{{ '{:>{}}'.format(1, 10**9) }}",
    "format many times": "{{ ('{0}' * 100000).format('x' * 900000) }}",
    "format_map": "{{ ('{a}' * 100000).format_map({'a': 'x' * 900000}) }}",
    "a precision of round": "{{ 1.5|round(10**9, 'ceil') }}",
    "slices": "{{ 'x'|slice(10**9)|list }}",
    "a batch": "{{ 'x'|batch(10**9, 'x')|list }}",
    "JSON indented": "{% set x = [1] %}" + "{% set x = [x] %}" * 500 + "{{ ([x] * 900)|tojson(indent=9999) }}",
    "lorem ipsum": "{{ lipsum(n=10**9) }}",
    "a date": "{{ strftime_now('%1000000000d') }}",
    "long dates": "{{ strftime_now('%c' * 400000) }}",
    "bytes": "{{ (1).to_bytes(10**9) }}",
    "a refusal": "{{ raise_exception('x' * 10**9) }}",
    "a long range": "{{ range(10**9)|list|length }}",
    "lists summed": "{{ ([[1] * 1000] * 1000)|sum(start=[])|length }}",
    "written often": "{% for i in range(99999) %}" + "x" * 5000 + "{% endfor %}",
    "set often": "{% set x %}{% for i in range(99999) %}" + "x" * 5000 + "{% endfor %}{% endset %}",
    "a long text written often": "{% set x = 'x' * 900000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "slices kept": "{% set x = 'x' * 900000 %}{% set n = namespace(l=[]) %}"
    "{% for i in range(99999) %}{% set n.l = n.l + [x[1:]] %}{% endfor %}",
    "macros that double": "".join(
        f"{{% macro m{i + 1}() %}}{{{{ m{i}() }}}}{{{{ m{i}() }}}}{{% endmacro %}}" for i in range(60)
    ).join(["{% macro m0() %}" + "x" * 1000 + "{% endmacro %}", "{{ m60() }}"]),
    "blocks that double": "{% block a %}xx{% endblock %}" + "".join(
        f"{{% block b{i} %}}{{{{ self.{f'b{i - 1}' if i else 'a'}() * 2 }}}}{{% endblock %}}" for i in range(40)
    ),
    "escaped": "{{ ('<' * 900000)|escape|escape|escape|escape }}",
    "a template of its own length": "{{ messages|length }}" + " " * 200_000,
    "a number of many digits": "{{ " + "9" * 50_000 + " }}",
}  # fmt: skip
TIME = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops over messages": "{% for a in messages * 300 %}{% for b in messages * 300 %}"
    "{% for c in messages * 300 %}{% endfor %}{% endfor %}{% endfor %}",
    "conditions of loops": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "macros that call themselves": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a macro without an end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a block without an end": "{% block a %}{{ self.a() }}{% endblock %}",
    "a loop that is recursive": "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "a search in a long list": "{% set l = ['x'] * 150000 %}" + "{% if 1 in l %}{% endif %}" * 3000,
    "long lists compared": "{% set l = range(99999)|list %}{% set m = range(99999)|list %}"
    + "{% if l == m %}{% endif %}" * 3000,
    "long lists tested": "{% set l = range(99999)|list %}{% set m = range(99999)|list %}"
    + "{% if l is eq(m) %}{% endif %}" * 3000,
    "sorted often": "{% set l = range(99999)|list %}{% for a in l %}{{ (l|sort)[0] }}{% endfor %}",
    "brackets": "{{ " + "(" * 20_000 + ")" * 20_000 + " }}",
    "brackets that never close": "{{ " + "[" * 90_000,
    "dots": "{{ a" + ".b" * 40_000 + " }}",
    "filters in a row": "{{ a" + "|trim" * 18_000 + " }}",
    "negations": "{{ " + "not " * 20_000 + "a }}",
    "nested conditions": "{% if a %}" * 4_000 + "{% endif %}" * 4_000,
    "sums": "{{ " + "a + " * 20_000 + "a }}",
}  # fmt: skip
HARMLESS = {"namespaces"}  # a namespace is written without what is in it

CHILD = """
import json, resource, sys
if sys.platform != "darwin":  # a process there has hundreds of GB of addresses from the start
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2])))
from qlora_core.tokens import template_sandbox as sandbox
from qlora_core.tokens.chat_template import ChatTemplate
from qlora_core.errors import QLoraError
sandbox.SECONDS = float(sys.argv[3])
templates, messages = json.load(sys.stdin)
for name, text in templates:
    print(name, file=sys.stderr, flush=True)
    try:
        told = f"written {len(ChatTemplate(text, '<s>', '</s>').render(messages))}"
    except (QLoraError, sandbox.TemplateError) as error:
        told = f"{type(error).__name__} {error}"
    print(json.dumps([name, told]), flush=True)
"""


def rendered(templates: dict[str, str], seconds: int, limit: float = template_sandbox.SECONDS) -> dict[str, str]:
    """What becomes of templates in a process with little memory (not on macOS), and so many seconds of processor time.

    Args:
        templates: by name.
        seconds: for all of them.
        limit: for each, as it is told to the sandbox.
    """
    given = json.dumps([list(templates.items()), MESSAGES])
    command = [sys.executable, "-c", CHILD, str(MEMORY), str(seconds), str(limit)]
    done = processes.run(command, given=given, text=True, work=processes.WORK + seconds)
    assert done.returncode == 0, (done.returncode, done.stdout[-300:], done.stderr[-2000:])
    return dict(map(json.loads, done.stdout.splitlines()))


def test_a_template_that_makes_much_is_stopped() -> None:
    told = rendered(GROWTH, seconds=60)
    assert told.keys() == GROWTH.keys()
    for name, outcome in told.items():
        assert not outcome.startswith("written") or name in HARMLESS, name
        assert len(outcome) < 600, name


def test_a_template_that_takes_long_is_stopped() -> None:
    told = rendered(TIME, seconds=60, limit=0.1)
    assert told.keys() == TIME.keys()
    assert not {name: outcome for name, outcome in told.items() if outcome.startswith("written")}


def test_limits_are_told_in_words() -> None:
    template = ChatTemplate(GROWTH["doubled in a loop"], "", "")
    with pytest.raises(
        ModelError, match=r"template was stopped: it makes more than 1 MB of text\. Choose another with"
    ):
        template.conversation(Conversation(MESSAGES))


def test_a_template_that_is_stopped_once_is_not_tried_on_every_row(tiny_model: Path, tmp_path: Path) -> None:
    """It writes little of these rows but one, which would be left out if the template had only refused it."""
    path = tmp_path / "mine.jinja"
    speak = "{% if m.role == 'user' %}{{ m.content * 200000 }}{% else %}{{ m.content }}</s>{% endif %}"
    path.write_text(f"{{% for m in messages %}}{speak}{{% endfor %}}", encoding="utf-8")
    tokenizer = ChatTokenizer(tiny_model, str(path))
    rows = [{"messages": [{"role": "user", "content": content}, *MESSAGES[1:]]} for content in ("", "", "b" * 9)]
    assert len(make_dataset(rows[:2], tokenizer, 16)) == 2
    with pytest.raises(ModelError, match="was stopped"):
        make_dataset(rows, tokenizer, 16)


@pytest.mark.parametrize("length", [100, 3_000_000])
def test_a_long_conversation_is_not_the_templates_fault(length: int) -> None:
    content = "ção " * (length // 4)
    template = ChatTemplate("{% for m in messages %}{% set c = m.content|trim + '!' %}{{ c ~ c }}{% endfor %}", "", "")
    assert template.render([{"role": "user", "content": content}]) == 2 * (content.strip() + "!")


def test_ten_thousand_turns_are_not_the_templates_fault(tiny_model: Path) -> None:
    tokenizer = ChatTokenizer(tiny_model)
    messages = [MESSAGES[i % 2] for i in range(10_000)]
    assert tokenizer.render(messages).count("<|im_start|>") == 10_000


# Made up ------------------------------------------------------------------------------------------------------------

VALUES = ["'x'", "7", "'ab\n' * 900", "[1, 'x']", "(1, 2)", "{'a': 'x'}", "messages", "messages[0].content", "n.x",
          "n.l", "a", "b", "9 ** 99", "1.5", "none", "range(999)", "'%s%9d'", "'{}{:>99}'", "n", "m"]  # fmt: skip
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or"]
FILTERS = ["trim", "length", "list", "join('--')", "replace('x', 'yy' * 99)", "center(999)", "indent(99)", "string",
           "sort", "map('string')|list", "map('upper')|join", "tojson", "tojson(indent=4)", "format(a, b)",
           "batch(3)|list", "slice(3)|list", "upper", "escape", "first", "last", "sum", "int", "round(3)", "unique",
           "dictsort", "default(a)", "groupby('role')", "reverse", "items|list", "truncate(9)", "select|list", "max",
           "wordcount"]  # fmt: skip
METHODS = ["upper()", "split('x')", "replace('x', 'yy' * 99)", "join(['a', b])", "center(999)", "format(a, b)",
           "zfill(99)", "items()", "get('a')", "keys()|list", "count('x')", "splitlines()", "strip()",
           "expandtabs(99)"]  # fmt: skip


def made_up(rng: random.Random) -> str:
    """A template of things that grow, in loops and macros."""

    def value(depth: int) -> str:
        if depth == 0 or rng.random() < 0.2:
            return rng.choice(VALUES)
        kinds = [
            lambda: f"({value(depth - 1)} {rng.choice(OPERATORS)} {value(depth - 1)})",
            lambda: f"({value(depth - 1)})|{rng.choice(FILTERS)}",
            lambda: f"({value(depth - 1)}).{rng.choice(METHODS)}",
            lambda: f"[{value(depth - 1)}, {value(depth - 1)}]",
            lambda: f"({value(depth - 1)})[{rng.choice(['0', '1:', '::-1', ':5', chr(39) + 'a' + chr(39)])}]",
        ]
        return rng.choice(kinds)()

    def block(depth: int) -> str:
        kinds = [
            lambda: f"{{{{ {value(3)} }}}}",
            lambda: f"{{% set {rng.choice(['a', 'b', 'n.x', 'n.l'])} = {value(3)} %}}",
            lambda: f"{{% set n.x = n.x {rng.choice('+*~')} n.x %}}{{% set n.l = n.l + [n.x, n.l] %}}",
        ]
        if depth:
            kinds += [
                lambda: (
                    f"{{% for i in {rng.choice(['range(99999)', 'messages', value(2)])} %}}{body(depth)}{{% endfor %}}"
                ),
                lambda: f"{{% if {value(2)} %}}{body(depth)}{{% endif %}}",
                lambda: f"{{% set a %}}{body(depth)}{{% endset %}}",
                lambda: f"{{% macro m(a) %}}{body(depth)}{{{{ m(a) }}}}{{% endmacro %}}{{{{ m(b) }}}}",
            ]
        return rng.choice(kinds)()

    def body(depth: int) -> str:
        return "".join(block(depth - 1) for _ in range(rng.randint(1, 4)))

    # what fails ends a template: with many beginnings, some go far
    return "{% set n = namespace(x='x', l=[]) %}{% set a = 'x' %}{% set b = [a] %}" + body(3)


def test_templates_made_up_end(request: pytest.FixtureRequest) -> None:
    """Each within its time, in a process with little memory; most of them fail early, as they should."""
    seed, count = 11, request.config.getoption("--templates")
    rng, outcomes = random.Random(seed), Counter()
    for start in range(0, count, 200):
        templates = {f"seed {seed}, number {start + i}": made_up(rng) for i in range(min(200, count - start))}
        told = rendered(templates, seconds=400, limit=0.5)
        assert told.keys() == templates.keys()
        outcomes.update(" ".join(outcome.split()[:1]) for outcome in told.values())
    assert {"written", "DataError", "ModelError"} <= set(outcomes) or count < 100, outcomes
