"""Chat templates: the same text as transformers makes, clear errors, and no harm from hostile ones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from edgecal.errors import FileFormatError, PromptError
from edgecal.text.tokenizer import Tokenizer
from tests.backends import byte_level_backend, from_directory

CONVERSATION = [
    {"role": "system", "content": "Answer politely."},
    {"role": "user", "content": "Grüße <b>&</b> 'x' \"y\" 👍🏽\n\n  two lines  "},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "{{ not a template }} {% raw %}"},
]

TEMPLATES = {
    "blocks are trimmed": """
{% for message in messages %}
    {% if message.role == 'system' %}
[SYS] {{ message['content'] | trim }}
    {% else %}
<{{ message.role }}>{{ message.content }}</{{ message.role }}>
    {% endif %}
{% endfor %}
  {%- if add_generation_prompt -%} <assistant> {%- endif %}
""",
    "namespace, loop controls and variables of a loop": """
{%- set ns = namespace(count=0, system='') %}
{%- for m in messages %}
{%- if m.role == 'system' %}{% set ns.system = m.content %}{% continue %}{% endif %}
{%- if loop.index > 3 %}{% break %}{% endif %}
{%- set ns.count = ns.count + 1 %}
{{- loop.index0 }}/{{ loop.length }}{{ ' last' if loop.last }}{{ loop.previtem.role }}:{{ m.content | upper }}
{%- else %}none{% endfor %}
{{- ns.system ~ '|' ~ ns.count }}""",
    "json": """{{ messages | tojson }}{{ messages | tojson(indent=2) }}
{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=True) }}
{%- if tools %}{{ tools | tojson }}{% else %}no tools{% endif %}{{ documents is none }}""",
    "generation tag": """{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = 1 %}
{{- m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ x }}{% endfor %}""",
    "slices, filters, tests": """{{ bos_token }}{% set rest = messages[1:] %}{{ rest | length }}
{{- messages[::-1][0].role }}
{{- rest | map(attribute='role') | join(', ') }}
{{- messages | selectattr('role', 'equalto', 'user') | list | count }}
{{- messages | rejectattr('role', 'in', ['user', 'system']) | map(attribute='content') | list }}
{{- messages[1].content.split('\\n')[0].strip().replace('x', 'z') }}{{ '%s-%d' % ('a', 3) }}
{{- '{0}:{b!r}'.format(1, b='c') }}
{{- messages[0].content is string }}{{ missing is defined }}{{ missing }}{{ missing | default('d') }}
{{- dict(a=1, b=[2]) }}
{{- (1, 2) + (3,) }}{{ [1] * 3 }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ {'a': 1}.items() | list }}
{{- 'b' in 'abc' }}{{ messages[9:] }}""",
    "macro, set block and call": """{% macro turn(role, text='') %}<{{ role }}>{{ text }}
{{- caller() if caller }}{% endmacro %}
{%- set header %}{{ messages[0].content }}!{% endset %}{{ header }}{{ turn('a', 'b') }}{{ turn(role='c') }}
{%- call turn('d') %}inner{% endcall %}{% filter upper %}shout{% endfilter %}
{%- for x in range(3) recursive %}{{ x }}{% endfor %}""",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "extra", [{}, {"tools": [{"type": "function", "function": {"name": "é<"}}]}], ids=["", "tools"]
)
def test_templates_render_as_in_transformers(name: str, extra: dict[str, Any]) -> None:
    options = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATES[name]}
    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_level_backend(), **options)
    ours = Tokenizer(byte_level_backend(), options)
    for start in (False, True):
        expected = theirs.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=start, **extra)
        assert ours.apply_chat_template(CONVERSATION, start, **extra) == expected


def with_template(template: Any) -> Tokenizer:
    return Tokenizer(byte_level_backend(), {"chat_template": template}, origin="folder/model")


def test_date_is_available_to_templates() -> None:
    assert with_template("{{ strftime_now('%Y') }}").apply_chat_template([]) == time.strftime("%Y")


def test_switches_reach_the_template() -> None:
    tokenizer = with_template("{{ thinking }}|{{ messages[0].name }}")
    message = {"role": "user", "content": "x", "name": "Ann"}
    assert tokenizer.apply_chat_template([message], thinking=True) == "True|Ann"


def test_named_templates() -> None:
    named = [
        {"name": "default", "template": "D"},
        {"name": "tool_use", "template": "T"},
        {"name": "rag", "template": "R"},
    ]
    for value in (named, {entry["name"]: entry["template"] for entry in named}):
        tokenizer = with_template(value)
        assert tokenizer.template_names == ["default", "rag", "tool_use"]
        assert tokenizer.apply_chat_template([]) == "D"
        assert tokenizer.apply_chat_template([], tools=[{}]) == "T"
        assert tokenizer.apply_chat_template([], template="rag") == "R"
        with pytest.raises(PromptError, match="no chat template named 'x'; choose one of default, rag, tool_use"):
            tokenizer.apply_chat_template([], template="x")
    with pytest.raises(PromptError, match="no chat template named 'default'; choose one of rag"):
        with_template({"rag": "R"}).apply_chat_template([])


def test_no_template_points_to_raw_prompts() -> None:
    with pytest.raises(PromptError, match="folder/model has no chat template; give it a raw prompt"):
        with_template(None).apply_chat_template([])


@pytest.mark.parametrize("bad", [3, ["x"], [{"name": "a"}], {"a": 1}])
def test_nonsense_template_entry_is_named(bad: Any) -> None:
    with pytest.raises(FileFormatError, match="folder/model: chat_template must be a text or named texts"):
        with_template(bad)


@pytest.mark.parametrize(
    "messages",
    ["hello", {"role": "user", "content": "x"}, ["hello"], [{"role": "user", "content": object()}]],
)
def test_messages_of_the_wrong_shape(messages: Any) -> None:
    with pytest.raises(PromptError, match=r"messages must be a list of dicts|messages\[0\]\['content'\] is a object"):
        with_template("{{ messages }}").apply_chat_template(messages)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("\n\n{% if %}", "line 3 of the chat template is not valid"),
        ("{% for %}", "line 1 of the chat template is not valid"),
        ("{{ 'x' | urlize }}", "No filter named 'urlize'"),
        ("{{ nothing.here }}", "fails on these messages: UndefinedError: 'nothing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include 'secret' %}", "fails on these messages"),
        ("x" * 300_000, "has 300,000 characters, more than 262,144"),
    ],
)
def test_templates_that_refuse_or_fail(template: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        with_template(template).apply_chat_template(CONVERSATION)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ ('{0.__class__}' | format(1)).x }}{{ '%s' | attr('__class__') }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n.__init__ = 1 %}",
        "{{ namespace({'_Namespace__attrs': 1}) }}",
    ],
)
def test_templates_cannot_reach_out(template: str) -> None:
    with pytest.raises(PromptError):
        with_template(template).apply_chat_template(CONVERSATION)


@pytest.mark.parametrize("template", ["{{ raise_exception.__globals__ }}", "{{ '{0.__class__}'.format(messages) }}"])
def test_private_attributes_read_as_nothing(template: str) -> None:
    assert with_template(template).apply_chat_template(CONVERSATION) == ""


GROW = "{%% set ns = namespace(s='aaaaaaaa', l=[1], t=(1,)) %%}{%% for i in range(99) %%}%s{%% endfor %%}{{ ns.l }}"
BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% set s = 'a' * 999999 %}{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}",
    "range": "{{ range(10 ** 12) | list }}",
    "output": "{% for a in range(99999) %}{% for b in range(9999) %}" + "x" * 9999 + "{% endfor %}{% endfor %}",
    "hidden output": "{% macro f() %}"
    + "x" * 99999
    + "{% endmacro %}{% for a in range(99999) %}{% set y = f() %}{% endfor %}",
    "adding": GROW % "{% set ns.s = ns.s + ns.s %}",
    "joining": GROW % "{% set ns.s = ns.s ~ ns.s %}",
    "set block": GROW % "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}",
    "lists": GROW % "{% set ns.l = ns.l + ns.l %}",
    "nested lists": GROW % "{% set ns.l = [ns.l, ns.l] %}",
    "nested dicts": GROW % "{% set ns.l = {'a': ns.l, 'b': ns.l} %}",
    "nested by calls": GROW % "{% set ns.l = dict(a=ns.l, b=ns.l) %}",
    "nested by macros": "{% macro f(n) %}{% set n.t = varargs %}{% endmacro %}" + GROW % "{{ f(ns, ns.t, ns.t) }}",
    "nested views": GROW % "{% set ns.l = {'a': ns.l, 'b': ns.l}.values() %}",
    "depth": GROW.replace("99", "99999") % "{% set ns.t = (ns.t,) %}" + "{{ {ns.t: 1} }}",
    "repeat": "{{ 'a' * 10 ** 11 }}",
    "repeat, turned": "{{ 10 ** 11 * 'a' }}",
    "repeat a list": "{{ [1] * 10 ** 11 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "center": "{{ 'a' | center(10 ** 11) }}",
    "ljust": "{{ 'a'.ljust(10 ** 11) }}",
    "percent": "{{ '%0999999999d' % 1 }}",
    "percent star": "{{ '%0*d' % (999999999, 1) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "format": "{{ '{:999999999}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, 3999999) * 9 }}",
    "replace": "{% set s = 'a' * 999999 %}{{ s.replace('a', s) }}",
    "replace filter": "{% set s = 'a' * 999999 %}{{ s | replace('a', s) }}",
    "join": "{{ ('a' * 999999).join(['b'] * 99999) }}",
    "join filter": "{{ range(99999) | join('a' * 999999) }}",
    "indent": "{{ ('\n' * 999999) | indent(999999) }}",
    "tabs": "{{ ('\t' * 999999).expandtabs(999999) }}",
    "bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "batch": "{{ [1] | batch(10 ** 10, 'x') | list }}",
    "sum": "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "json": "{{ [[[[1] * 99999]]] | tojson(indent=64) }}",
    "json separators": "{{ ([1] * 99999) | tojson(separators=('a' * 99999, ':')) }}",
    "searching": "{% set s = 'a' * 3999999 %}{% for i in range(99999) %}{% if 'b' in s %}{% endif %}{% endfor %}",
    "slicing": "{% set s = 'a' * 3999999 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling calls": "{% macro f(n) %}{% if n %}{% set x = f(n - 1) + f(n - 1) %}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long sum": "{{ 1" + " + 1" * 50000 + " }}",
    "lazy filters": GROW.replace("99", "9999") % "{% set ns.l = ns.l | map('string') %}" + "{{ ns.l | list }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_templates_are_stopped(name: str) -> None:
    tokenizer = with_template(BOMBS[name])
    with pytest.raises(PromptError):  # after hours without the budget
        tokenizer.apply_chat_template(CONVERSATION)


def test_a_long_conversation_is_not_taken_for_an_attack(smollm2_hf: Path) -> None:
    tokenizer = from_directory(smollm2_hf)
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 200} for i in range(1000)]
    assert tokenizer.apply_chat_template(turns).count("<|im_start|>") == 1002
    quadratic = with_template("{% for m in messages %}{{ messages[loop.index0:] | length }}{% endfor %}")
    assert quadratic.apply_chat_template(turns[:200]).endswith("321")
