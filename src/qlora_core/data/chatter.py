"""Words said to or by a chat program around a text that it wrote. Knows lines, nothing of files."""

from __future__ import annotations

import re
from collections.abc import Sequence

TOLD = "instruction to a chat program"
SAID = "words of a chat program"
NEAR = 3  # blocks at either end of a text that may hold such words
LONGEST = 700  # characters: longer blocks are text

# An order about a text, to somebody who is called "tu" or "you": no text of a book begins so
_ORDER = re.compile(
    r"(?:(?:agora|por favor|ok|olá|please|now|hi)[,.!]?\s+)*"
    r"(?:escreve|escreva|reescreve|reescreva|resume|resuma|traduz|traduza|corrige|corrija|faz(?:-me)?|faça|gera|gere|"
    r"cria|crie|melhora|melhore|transforma|transforme|converte|converta|organiza|organize|formata|formate|expande|"
    r"expanda|dá-me|preciso que|quero que|podes|poderias|pode|write|rewrite|summari[sz]e|translate|correct|proofread|"
    r"generate|create|improve|turn|convert|format|expand|give me|i need you to|i want you to|can you|could you)\b"
    r"(?=.*\b(?:textos?|biografias?|resumos?|artigos?|parágrafos?|capítulos?|palavras|português|inglês|markdown|tabelas?|"
    r"perguntas|versão|lista|jsonl?|texts?|biograph(?:y|ies)|summar(?:y|ies)|articles?|paragraphs?|chapters?|words|"
    r"english|portuguese|tables?|questions|version)\b)",
    re.IGNORECASE,
)
_ROLE = re.compile(
    r"(?:atua|age|aja|atue|comporta-te|imagina que (?:és|és)|és|you are|act|imagine you are)\s+(?:como\s+|as\s+)?"
    r"(?:um|uma|a|an)\s+(?:\w+\s+){0,3}(?:assistente|especialista|jornalista|escritora?|redatora?|biógraf[oa]|editora?|"
    r"historiadora?|assistant|expert|journalist|writer|editor|biographer|historian)\b.*(?:[.:]|$)",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"(?:(?:claro|com certeza|certamente|perfeito|excelente|ótimo|muito bem|sem problema|sure|certainly|of course|"
    r"absolutely|great|got it)(?:\s+que sim)?[!.,:]*\s*)?"
    r"(?:aqui (?:está|estão|tens|tem|vai|fica|segue)|segue(?:-se)?|eis|here(?:'s|’s| is| are)|below is)\b"
    r"(?=.*\b(?:versão|texto|biografia|resumo|artigo|parágrafo|tabela|lista|tradução|markdown|capítulo|ficheiro|"
    r"version|text|biography|summary|article|paragraph|table|list|translation|chapter|file)\b)",
    re.IGNORECASE,
)
_AGREED = re.compile(
    r"(?:claro(?: que sim)?|com certeza|certamente|sure(?: thing)?|certainly|of course|absolutely)\s*[!.]+\s*"
    r"(?:[^.!?]{0,160}[:!.])?",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"(?:espero que (?:isto |este texto |esta versão )?(?:ajude|te ajude|seja útil|gostes|goste)|"
    r"(?:se|caso) (?:quiser(?:es)?|precisar(?:es)?|desejar(?:es)?|preferir(?:es)?)[^.]{0,60}"
    r"\b(?:posso|diz-me|diga-me|avisa)|"
    r"(?:queres|quer|desejas|deseja|gostarias|gostaria) que (?:eu )?|posso (?:também |ainda )?(?:ajustar|adaptar|"
    r"acrescentar|criar|preparar|fazer|transformar|gerar)|diz-me se|"
    r"i hope this helps|let me know (?:if|whether)|if you (?:want|need|would like|'d like|’d like)[^.]{0,60}\bi can|"
    r"would you like me to|feel free to ask|do you want me to)",
    re.IGNORECASE,
)


def chatter_in(texts: Sequence[str]) -> dict[int, str]:
    """Return the positions and kinds of lines that are orders to a chat program or its remarks about its own text.

    Only the first and the last few lines are examined: further in, a person in the text may say such things.
    """
    found: dict[int, str] = {}
    for place, text in enumerate(texts[:NEAR]):
        reason = _opening(text)
        if not reason:
            break
        found[place] = reason
    for place in range(len(texts) - 1, max(len(texts) - 1 - NEAR, len(found)), -1):
        if len(texts[place]) > LONGEST or not _CLOSING.match(_plain(texts[place])):
            break
        found[place] = SAID
    return found if len(found) < len(texts) else {}


def _opening(text: str) -> str:
    text = _plain(text)
    if len(text) > LONGEST:
        return ""
    if _OPENING.match(text) or _AGREED.fullmatch(text):
        return SAID
    return TOLD if _ORDER.match(text) or _ROLE.match(text) else ""


def _plain(text: str) -> str:
    """Return a line without the marks that such remarks begin with."""
    return " ".join(text.split()).lstrip("*_#>-—–\"“«' 👍😊✅🙂")
