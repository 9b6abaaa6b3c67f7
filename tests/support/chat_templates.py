"""Chat templates of the structures that published models have, in other words, and tokenisers of the kinds they have.

`uv run python tests/support/chat_templates.py` prints what becomes of each shape of conversation, held against a
rendering of its own by plain jinja2: "–" where what is trained is exactly each answer and the token that ends it,
behind what the model is given when it is asked for it, and "refused" where the row is left out for a reason that is
right.
"""

from __future__ import annotations

import datetime
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qlora_core.tokens.dataset import make_dataset
from qlora_core.tokens.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class Published:
    """A template with the tokens that it is written for."""

    text: str
    special: tuple[str, ...]
    end: str
    eos: str
    bos: str | None = None
    plain: tuple[str, ...] = ()
    listed: bool = True
    models: tuple[str, ...] = ()
    calls: bool = False
    system: bool = True
    thinks: bool = False


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
PHI = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITH_SYSTEM = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe of help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set told = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set told = false %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant take turns') }}"
    "{% endif %}{% if loop.index0 == 0 and told %}"
    "{% set content = '<<SYS>>\n' + told + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% set rest = messages %}{% for m in rest %}{% set written = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set written = bos_token + written %}{% endif %}{{ written }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_32 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set told = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set told = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Knows up to: December 2023\\nToday: " + date_string + "\\n\\n" }}
{{- told }}
{{- "<|eot_id|>" }}
{%- if not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first = messages[0]['content'] | trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("tools go with the first question, and there is none") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nThese functions may be called, as JSON.\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first + "<|eot_id|>" }}
{%- endif %}
{%- for m in messages %}
    {%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) %}
        {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in m %}
        {%- if not m.tool_calls | length == 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif m.role == "tool" or m.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if m.content is mapping or m.content is iterable %}
            {{- m.content | tojson }}
        {%- else %}
            {{- m.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
_QWEN_TOOLS = """{{- '\\n\\n# Tools\\n\\nCall them as needed.\\n<tools>' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}"""
_QWEN_RESULT = """{%- elif m.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- m.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}"""
QWEN_25 = (
    """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'Be of help.' }}{%- endif %}
    """
    + _QWEN_TOOLS
    + """
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nBe of help.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for m in messages %}
    {%- if (m.role == "user") or (m.role == "system" and not loop.first) or
        (m.role == "assistant" and not m.tool_calls) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == "assistant" %}
        {{- '<|im_start|>' + m.role }}
        {%- if m.content %}{{- '\\n' + m.content }}{%- endif %}
        {%- for call in m.tool_calls %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}
            {{- call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    """
    + _QWEN_RESULT
    + """
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
)
QWEN_3 = (
    """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    """
    + _QWEN_TOOLS
    + """
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(open=true, asked=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and m.role == "user" and m.content is string and not(m.content.startswith('<tool_response>') and
        m.content.endswith('</tool_response>')) %}
        {%- set ns.open = false %}
        {%- set ns.asked = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.content is string %}{%- set content = m.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (m.role == "user") or (m.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == "assistant" %}
        {%- set thought = '' %}
        {%- if m.reasoning_content is string %}
            {%- set thought = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.asked and (loop.last or (not loop.last and thought)) %}
            {{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + m.role + '\\n' + content }}
        {%- endif %}
        {%- if m.tool_calls %}
            {%- for call in m.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if call.function %}{%- set call = call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}
                {%- if call.arguments is string %}
                    {{- call.arguments }}
                {%- else %}
                    {{- call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    """
    + _QWEN_RESULT
    + """
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
)
QWEN_3_ALWAYS = QWEN_3.replace(
    """'<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
""",
    """'<|im_start|>assistant\\n<think>\\n' }}
""",
)
QWEN_3_WITHOUT_SWITCH = QWEN_3.replace("enable_thinking is defined and enable_thinking is false", "false")
_IN_TURN = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant take turns') }}"
    "{% endif %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}"
    "{% endif %}"
)
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system text here') }}{% endif %}"
    "{% for m in messages %}" + _IN_TURN + "{{ '<start_of_turn>' + role + '\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA_3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set before = messages[0]['content'] + '\n\n' -%}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set before = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for m in rest -%}" + _IN_TURN + "{{ '<start_of_turn>' + role + '\n' + (before if loop.first else '') }}"
    "{%- if m['content'] is string -%}{{ m['content'] | trim }}{%- else -%}{{ raise_exception('no text') }}"
    "{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"
)
MISTRAL_1 = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
MISTRAL_3 = """{%- if messages[0]["role"] == "system" %}
    {%- set told = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set asked = rest | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for m in rest %}
    {%- if not (m.role == "tool" or m.role == "tool_results" or
        (m.tool_calls is defined and m.tool_calls is not none)) %}
        {%- if (m["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("user and assistant take turns") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in rest %}
    {%- if m["role"] == "user" %}
        {%- if tools is not none and (m == asked[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}{{- tool | tojson }}{{- ", " if not loop.last else "]" }}{%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and told is defined %}
            {{- "[INST] " + told + "\\n\\n" + m["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + m["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in m.tool_calls %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] }}
            {%- if not call.id is defined or call.id | length != 9 %}
                {{- raise_exception("ids have nine letters or digits") }}
            {%- endif %}
            {{- ', "id": "' + call.id + '"}' }}
            {{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif m["role"] == "assistant" %}
        {{- " " + m["content"] | trim + eos_token }}
    {%- elif m["role"] == "tool_results" or m["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content | string + ", " }}
        {%- if not m.tool_call_id is defined or m.tool_call_id | length != 9 %}
            {{- raise_exception("ids have nine letters or digits") }}
        {%- endif %}
        {{- '"call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("only user, assistant and tool") }}
    {%- endif %}
{%- endfor %}
"""
PHI_3_FIRST = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') %}"
    "{{ '<|user|>' + '\n' + m['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n' }}"
    "{% elif (m['role'] == 'assistant') %}{{ m['content'] + '<|end|>' + '\n' }}{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<|system|>\n' + m['content'] + '<|end|>\n' }}"
    "{% elif m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + '<|end|>\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_4_MINI = (
    "{% for m in messages %}{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|tool|>' + m['tools'] + '<|/tool|>' + '<|end|>' }}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_4 = (
    "{% for m in messages %}{% if m['role'] in ('system', 'user', 'assistant') %}"
    "{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
SMOLLM_3 = """{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- if enable_thinking -%}{%- set mode = "/think" -%}{%- else -%}{%- set mode = "/no_think" -%}{%- endif -%}
{{- "<|im_start|>system\\n" -}}
{%- if messages[0].role == "system" -%}
  {%- set told = messages[0].content -%}
  {%- if "/no_think" in told -%}
    {%- set mode = "/no_think" -%}
  {%- elif "/think" in told -%}
    {%- set mode = "/think" -%}
  {%- endif -%}
  {%- set own = told.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{%- if "/system_override" in told -%}
  {{- own.replace("/system_override", "").rstrip() -}}
  {{- "<|im_end|>\\n" -}}
{%- else -%}
  {{- "## About\\n\\nToday: " ~ strftime_now("%d %B %Y") ~ "\\nMode: " + mode + "\\n\\n## Instructions\\n\\n" -}}
  {%- if own -%}
    {{- own + "\\n\\n" -}}
  {%- elif mode == "/think" -%}
    {{- "Think first.\\n\\n" -}}
  {%- else -%}
    {{- "Be of help.\\n\\n" -}}
  {%- endif -%}
  {%- if tools -%}
    {%- for tool in tools -%}{{- tool | tojson ~ "\\n" -}}{%- endfor -%}
  {%- endif -%}
  {{- "<|im_end|>\\n" -}}
{%- endif -%}
{%- for m in messages -%}
    {%- set content = m.content if m.content is string else "" -%}
    {%- if m.role == "user" -%}
        {{ "<|im_start|>" + m.role + "\\n" + content + "<|im_end|>\\n" }}
    {%- elif m.role == "assistant" -%}
        {% generation %}
        {%- if mode == "/think" -%}
            {{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- else -%}
            {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- endif -%}
        {% endgeneration %}
    {%- elif m.role == "tool" -%}
        {{ "<|im_start|>" + "user\\n" + content + "<|im_end|>\\n" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if mode == "/think" -%}
        {{ "<|im_start|>assistant\\n" }}
    {%- else -%}
        {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" }}
    {%- endif -%}
{%- endif -%}
"""
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPENED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)

MISTRAL_TOKENS = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
                  "[TOOL_RESULTS]", "[/TOOL_RESULTS]")  # fmt: skip
THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")
PUBLISHED = {
    "ChatML": Published(CHATML, IM, "<|im_end|>", "<|im_end|>"),
    "ChatML of a base": Published(CHATML, IM, "<|im_end|>", "<|endoftext|>", listed=False),
    "SmolLM2": Published(
        CHATML_WITH_SYSTEM, IM, "<|im_end|>", "<|im_end|>",
        models=("smollm2-135m", "smollm2-360m", "smollm2-1.7b"),
    ),
    "SmolLM3": Published(
        SMOLLM_3, IM, "<|im_end|>", "<|im_end|>", plain=THINK[:2], thinks=True, models=("smollm3-3b",)
    ),
    "Llama 2": Published(LLAMA_2, ("<s>", "</s>"), "</s>", "</s>", "<s>"),
    "Llama 3": Published(LLAMA_3, HEADERS, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    "Llama 3.2": Published(
        LLAMA_32, HEADERS, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>", calls=True,
        models=("llama-3.2-1b", "llama-3.2-3b", "llama-3.2-3b-4bit", "llama-3.1-8b", "llama-3.1-8b-4bit"),
    ),
    "Mistral v0.1": Published(MISTRAL_1, ("<s>", "</s>"), "</s>", "</s>", "<s>", system=False),
    "Mistral v0.3": Published(
        MISTRAL_3, MISTRAL_TOKENS, "</s>", "</s>", "<s>", calls=True, models=("mistral-7b", "mistral-7b-4bit")
    ),
    "Qwen2.5": Published(
        QWEN_25, IM, "<|im_end|>", "<|im_end|>", plain=THINK[2:], calls=True,
        models=("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b"),
    ),
    "Qwen3": Published(
        QWEN_3, IM, "<|im_end|>", "<|im_end|>", plain=THINK, calls=True, thinks=True,
        models=("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-4b-4bit", "qwen3-8b", "qwen3-8b-4bit"),
    ),
    "Qwen3 without a switch": Published(
        QWEN_3_WITHOUT_SWITCH, IM, "<|im_end|>", "<|im_end|>", plain=THINK, calls=True, thinks=True
    ),
    "Qwen3 that always thinks": Published(
        QWEN_3_ALWAYS, IM, "<|im_end|>", "<|im_end|>", plain=THINK, calls=True, thinks=True
    ),
    "Gemma 2": Published(GEMMA_2, TURNS, "<end_of_turn>", "<eos>", "<bos>", system=False, models=("gemma-2-2b",)),
    "Gemma 3": Published(GEMMA_3, TURNS, "<end_of_turn>", "<eos>", "<bos>", models=("gemma-3-1b",)),
    "Phi-3, first": Published(PHI_3_FIRST, PHI, "<|end|>", "<|endoftext|>", "<|endoftext|>", system=False),
    "Phi-3": Published(PHI_3, PHI, "<|end|>", "<|endoftext|>", "<|endoftext|>"),
    "Phi-4-mini": Published(
        PHI_4_MINI, (*PHI, "<|tool|>", "<|/tool|>"), "<|end|>", "<|endoftext|>", "<|endoftext|>", models=("phi-4-mini",)
    ),
    "Phi-4": Published(PHI_4, (*IM, "<|im_sep|>"), "<|im_end|>", "<|im_end|>"),
    "Zephyr": Published(ZEPHYR, ("<s>", "</s>"), "</s>", "</s>", "<s>"),
    "marks": Published(MARKED, IM, "<|im_end|>", "<|im_end|>"),
    "opens a thought": Published(OPENED, IM, "<|im_end|>", "<|im_end|>", plain=THINK[:2]),
}  # fmt: skip

# Tokenisers -----------------------------------------------------------------------------------------------------

WORDS = (
    "Where is the key? Under the stone. Which stone? The grey one. Q: A: user assistant model system Be brief. Green "
    '(Green) "Green" [INST] [/INST](the ](  ** - ### Prompt: ### Response: [/INST] Under [/INST](x [/INST]"the ]" '
)
KINDS = (
    "bytes",
    "byte pairs",
    "byte pairs, blank first",
    "SentencePiece",
    "SentencePiece, older",
    "SentencePiece, no blank first",
)


def make_tokenizer(kind: str, special: Sequence[str], plain: Sequence[str]) -> Tokenizer:
    """A tokeniser of a kind; all but the first join letters to words, blanks before them included."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "bytes":
        made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    elif kind.startswith("byte pairs"):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="blank" in kind)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator([WORDS] * 4, trainer)
    else:
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        split = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        made.pre_tokenizer = split
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        fallback = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=fallback, show_progress=False)
        made.train_from_iterator([WORDS] * 4, trainer)
        made = without_special(made)
        if kind == "SentencePiece":
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            blanks = normalizers.Replace(" ", "▁")
            made.normalizer = (
                normalizers.Sequence([normalizers.Prepend("▁"), blanks]) if kind.endswith("older") else blanks
            )
            made.pre_tokenizer = None
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return made


def without_special(made: Tokenizer) -> Tokenizer:
    """The same with its bytes as entries of the vocabulary and not as tokens that a text may spell."""
    content = json.loads(made.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == "<unk>"]
    return Tokenizer.from_str(json.dumps(content))


def write(directory: Path, published: Published, kind: str, family: str = "") -> Path:
    """A model directory's tokeniser and template; weights of a family that lie there get its end of text."""
    directory.mkdir(parents=True, exist_ok=True)
    made = make_tokenizer(kind, published.special, published.plain)
    made.save(str(directory / "tokenizer.json"))
    added = {
        str(i): {"content": token.content, "special": token.special, "normalized": False}
        | dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
        for i, token in made.get_added_tokens_decoder().items()
    }
    settings: dict[str, Any] = {"bos_token": published.bos, "eos_token": published.eos, "chat_template": published.text}
    settings["added_tokens_decoder"] = added
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ends = [made.token_to_id(published.eos)] + ([made.token_to_id(published.end)] if published.listed else [])
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
    config = {"model_type": "llama"}
    if family:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        config |= {"model_type": family, "eos_token_id": ends[0]}
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


# A rendering of its own -----------------------------------------------------------------------------------------


class Generation(jinja2.ext.Extension):
    """The tag as a block that writes what it holds."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.If(jinja2.nodes.Const(True), body, [], [], lineno=line)


def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


@functools.cache
class Plain:
    """A template rendered by plain jinja2."""

    def __init__(self, published: Published) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals |= {"raise_exception": refuse, "strftime_now": datetime.date(2024, 7, 26).strftime}
        self._template = environment.from_string(published.text)
        self._names = {"bos_token": published.bos or "", "eos_token": published.eos}

    def __call__(self, messages: Sequence[dict[str, Any]], ask: bool = False, **names: Any) -> str:
        names = {name: value for name, value in names.items() if value is not None}
        return self._template.render(messages=messages, add_generation_prompt=ask, **self._names, **names)


def expected(published: Published, messages: Sequence[dict[str, Any]], tools: Any = None) -> list[tuple[str, str]]:
    """What the model is given for each answer to be trained, and what it is to say.

    Raises:
        TemplateError: the template refuses the conversation.
    """
    plain, found = Plain(published), []
    if not published.system and messages[0]["role"] == "system":
        first = {**messages[1], "content": messages[0]["content"] + "\n\n" + messages[1]["content"]}
        messages = [first, *messages[2:]]
    shown = [{key: value for key, value in message.items() if key != "train"} for message in messages]
    if "reasoning_content" not in published.text:
        shown = [inline(message) for message in shown]
    plain(shown, tools=tools)
    for place, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("train") is False:
            continue
        thinks = bool(message.get("reasoning_content")) if published.thinks else None
        whole = plain(shown[: place + 1], tools=tools, enable_thinking=thinks)
        words = shown[place]["content"] or "<tool_call>"
        if place:
            prompt = plain(shown[:place], ask=True, tools=tools, enable_thinking=thinks)
            said = whole[len(prompt) :] if whole.startswith(prompt) else None
            if said is None:  # the template writes the question otherwise, once it is answered
                lead = " " if published.text is MISTRAL_3 else ""
                said = lead + words + published.end
        else:
            prompt, said = whole[: whole.index(words)], whole[whole.index(words) :]
        for empty in ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n", "\n</think>\n\n") if thinks is False else ():
            if said.startswith(empty):
                prompt, said = prompt + empty, said.removeprefix(empty)
        if prompt.endswith("<think>\n") and not whole.startswith(
            prompt
        ):  # what is said goes on from there, though the template then leaves it out
            said = (words + published.end).removeprefix("<think>\n")
        found.append((prompt, said[: said.index(published.end) + len(published.end)]))
    return found


def inline(message: dict[str, Any]) -> dict[str, Any]:
    """An answer with its reasoning before its words."""
    thought = message.get("reasoning_content")
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    return {**rest, "content": f"<think>\n{thought}\n</think>\n\n{message['content']}"} if thought else rest


# Shapes ---------------------------------------------------------------------------------------------------------


def say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TOOL = {
    "type": "function",
    "function": {
        "name": "tide",
        "description": "When the tide turns.",
        "parameters": {"type": "object", "properties": {"day": {"type": "string"}}},
    },
}
CALL = {"type": "function", "id": "x1y2z3a4b", "function": {"name": "tide", "arguments": {"day": "Friday"}}}
SHAPES: dict[str, list[dict[str, Any]]] = {
    "one turn": [say("user", "Where is the key?"), say("assistant", "Under the stone.")],
    "several turns": [
        say("user", "Where is the key?"),
        say("assistant", "(Under) the stone."),
        say("user", "Which stone?"),
        say("assistant", '"The grey one."'),
        say("user", "Sure?"),
        say("assistant", "- Yes, ação 😀."),
    ],
    "system": [
        say("system", "Be brief."),
        say("user", "Where is the key?"),
        say("assistant", "Under the stone."),
        say("user", "Which stone?"),
        say("assistant", "Grey."),
    ],
    "reasoning": [
        say("user", "2+2?"),
        say("assistant", "Four.", reasoning_content="twice two"),
        say("user", "3+3?"),
        say("assistant", "Six.", reasoning_content="twice three"),
    ],
    "assistant first": [
        say("assistant", "Good evening."),
        say("user", "Is the lamp lit?"),
        say("assistant", "Since six."),
    ],
    "two users": [say("user", "Hello."), say("user", "Where is the key?"), say("assistant", "Under the stone.")],
    "tool turn": [
        say("user", "When does the tide turn on Friday?"),
        say("assistant", "", tool_calls=[CALL]),
        say("tool", "17:40", tool_call_id=CALL["id"], name="tide"),
        say("assistant", "At 17:40."),
    ],
    "not trained": [
        say("user", "Where is the key?"),
        say("assistant", "No idea.", train=False),
        say("user", "Look again."),
        say("assistant", "Under the stone."),
    ],
}


def trained(tokenizer: ChatTokenizer, rows: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
    """Each stretch of trained ids, and the ids before it, as far as the row has them."""
    found = []
    for row in rows:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], row.trained, [False]]).astype(int)))
        found += [
            (row.ids[:start].tolist(), row.ids[start:stop].tolist())
            for start, stop in zip(edges[0::2], edges[1::2], strict=True)
        ]
    return found


def spelled(tokenizer: ChatTokenizer, ids: Sequence[int]) -> str:
    """Ids as text, without regard to blanks, which some tokenisers put before a text."""
    return "".join(tokenizer._tokenizer.decode(ids, skip_special_tokens=False).replace("▁", " ").split(" "))


def verdict(published: Published, tokenizer: ChatTokenizer, shape: str) -> str:
    """ "–" where all is as expected, "refused" where that is right, else what is wrong."""
    messages = SHAPES[shape]
    tools = [TOOL] if shape == "tool turn" else None
    dataset = make_dataset([{"messages": messages, "tools": tools, "source": "x"}], tokenizer, 4096)
    writes = published.calls or shape != "tool turn"
    try:
        wanted = expected(published, messages, tools)
    except jinja2.TemplateError as error:
        refused = len(dataset.skipped) == 1 and (str(error) in dataset.skipped[0][1] or not writes)
        return "refused" if refused and not len(dataset) else f"should be refused: {error}"
    if not writes:
        reasons = ("does not write the call", "leaves out turn")
        named = len(dataset.skipped) == 1 and any(reason in dataset.skipped[0][1] for reason in reasons)
        return "refused" if named else "trains calls that are not written"
    if dataset.skipped:
        return f"refused, wrongly: {dataset.skipped[0][1]}"
    found = sorted(trained(tokenizer, dataset.rows), key=lambda pair: len(pair[0]))
    wanted = sorted(wanted, key=lambda pair: len(tokenizer._tokenizer.encode(pair[0]).ids))
    if len(found) != len(wanted):
        return f"{len(found)} answers trained, {len(wanted)} wanted"
    for (given, said), (prompt, answer) in zip(found, wanted, strict=True):
        if spelled(tokenizer, given) != prompt.replace(" ", ""):
            return f"behind {spelled(tokenizer, given)!r}, wanted {prompt!r}"
        if spelled(tokenizer, said) != answer.replace(" ", ""):
            return f"trained {spelled(tokenizer, said)!r}, wanted {answer!r}"
    return _as_asked(published, tokenizer, messages, found, tools) or "–"


def _as_asked(published, tokenizer, messages, found, tools) -> str:
    """What is wrong with the ids before each answer, held against what the model is given when it is asked for it."""
    asked = [
        tokenizer.encode_prompt(messages[:place], tools)
        for place, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("train") is not False and place
    ]
    given = [ids for ids, _ in found]
    return "" if all(ids in given for ids in asked) else "what is trained does not continue what is asked"


def table(kinds: Sequence[str] = KINDS) -> dict[str, dict[str, str]]:
    """For each template and shape what came of it with all kinds of tokenisers, where they differ by kind."""
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, published in PUBLISHED.items():
            verdicts = {shape: {} for shape in SHAPES}
            for kind in kinds:
                tokenizer = ChatTokenizer(write(Path(place) / name / kind, published, kind))
                for shape in SHAPES:
                    verdicts[shape][kind] = verdict(published, tokenizer, shape)
            found[name] = {
                shape: next(iter(by_kind.values()))
                if len({*by_kind.values()}) == 1
                else "; ".join(f"{kind}: {said}" for kind, said in by_kind.items() if said not in ("–", "refused"))
                for shape, by_kind in verdicts.items()
            }
    return found


if __name__ == "__main__":
    print(f"| template | {' | '.join(SHAPES)} |\n|---|{'---|' * len(SHAPES)}")
    wrong = 0
    for name, row in table().items():
        print(f"| {name} | {' | '.join(cell.replace('|', chr(92) + '|') for cell in row.values())} |")
        wrong += sum(cell not in ("–", "refused") for cell in row.values())
    sys.exit(f"{wrong} are not as expected" if wrong else 0)
