"""An invented club's book as scanning leaves it, its biographies, tables and a second copy, for the tests.

Everything is made here and made up: the Grémio da Ponte Velha never played.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

TITLE, AUTHOR = "40 Anos de Ponte Velha", "Adelino Sarmento"
CHAPTERS = (
    "A ponte e a bola", "O campo da eira", "Os primeiros sócios", "A camisola verde", "O comboio das sete",
    "A grande cheia", "Uma taça de estanho", "O treinador húngaro", "Gente da bancada", "O regresso do Faísca",
    "A noite das tochas", "Dívidas e rifas", "As raparigas de setembro", "O que ficou por dizer",
)  # fmt: skip
WHO = (
    "o guarda-redes Belmiro", "a lavadeira Custódia", "o sapateiro Honorato", "o extremo Faísca", "o padre Ludovino",
    "a professora Etelvina", "o ferrador Aníbal", "o médio Querubim", "o tesoureiro Lopo", "a bilheteira Eugénia",
    "o massagista Zacarias",
)  # fmt: skip
DID = (
    "guardou a primeira bola da equipa", "pintou de branco as balizas do campo",
    "escreveu a ata numa folha de embrulho", "emprestou a carroça ao clube",
    "vendeu rifas à porta da igreja", "apostou um queijo no resultado",
    "remendou as redes com fio de pesca", "levou a equipa ao comboio da manhã", "contou as moedas da bilheteira",
    "esperou pela equipa junto ao rio", "trouxe da cidade um apito novo", "tocou o sino depois da vitória",
    "mandou calar a bancada inteira",
)  # fmt: skip
WHEN = (
    "no inverno mais frio de que há memória", "na véspera da festa da padroeira",
    "quando a equipa ainda não tinha campo",
    "depois de uma derrota que ninguém quis comentar", "num domingo em que a primeira chuva parou tudo",
    "antes de chegar a luz à vila", "no ano em que a estrada foi aberta",
)  # fmt: skip
THEN = (
    "e ainda hoje se conta isso na taberna do largo", "e a direção agradeceu com um jantar de sopa",
    "embora os mais velhos jurem que foi outro", "e nunca mais quis falar do assunto",
    "porque a equipa não tinha mais ninguém",
)  # fmt: skip


def sentence(number: int) -> str:
    """One of some thousand sentences, each of which stands once."""
    who, did = WHO[number % len(WHO)], DID[number * 3 % len(DID)]
    text = f"{who} {did} {WHEN[number * 5 % len(WHEN)]}, {THEN[number // 7 % len(THEN)]}."
    return text[0].upper() + text[1:]


def paragraphs(chapter: int, sentences: int = 12) -> list[str]:
    """The text of a chapter: four sentences a paragraph, each paragraph with one that only it has."""
    numbers = range(chapter * sentences, (chapter + 1) * sentences)
    found = [sentence(number) for number in numbers]
    return [
        " ".join([*found[at : at + 4], f"Assim terminou o episódio {chapter * 10 + at // 4 + 100} desta crónica."])
        for at in range(0, sentences, 4)
    ]


def roman(number: int) -> str:
    return ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII", "XIII", "XIV"][number - 1]


IMPRINT = [
    AUTHOR, TITLE, "Grémio da Ponte Velha", f"Título: {TITLE}", f"Autor: {AUTHOR}", "Capa: Eugénia Sá",
    "Execução gráfica: Oficina do Largo", "1.ª edição: maio de 1999", "Tiragem: 300 exemplares",
    "Depósito legal n.º 000000/99",
]  # fmt: skip
THANKS = ["Agradecimentos", "A todos os que guardaram papéis em gavetas e", "não os deitaram fora, obrigado."]
SOURCES = [
    "Bibliografia",
    "Sarmento, A., Papéis da Ponte, Lisboa, 1987.",
    "Vaz, E., A vila e o rio, ed. da autora, 1972.",
    "Lopo, M., Contas à moda antiga, pp. 12-40, 1965.",
]


def scanned_lines(width: int = 52) -> list[str]:
    """The book line by line with what scanning does: running heads, specks, letters for figures, words run together."""
    contents = ["Índice", *(f"{roman(n)} – {name} .......... {10 * n}" for n, name in enumerate(CHAPTERS, 1))]
    lines = [*IMPRINT, *contents, *THANKS]
    printed = 0
    for chapter, name in enumerate(CHAPTERS):
        lines += [{8: "Vlll", 13: "/ /\tXIII"}.get(chapter + 1, roman(chapter + 1)), name]
        for text in paragraphs(chapter):
            for line in textwrap.wrap(text, width):
                printed += 1
                if printed % 9 == 0:
                    lines.append(AUTHOR if printed % 18 else TITLE)
                lines.append(line)
    lines += SOURCES
    return _with_faults(lines)


def _with_faults(lines: list[str]) -> list[str]:
    """Faults at places that the tests know: inside prose, and never at a line's end."""
    faults = {
        "guardou a primeira bola": f"guardou {TITLE}g a primeira bola",
        "vendeu rifas à porta": "vendeu rifas àporta",
        "a primeira chuva": "aprimeira chuva",
        "da padroeira": "dapadroeira",
        "a equipa ainda": "aequipa ainda",
    }
    done: dict[str, int] = {}
    found = []
    for number, line in enumerate(lines):
        for right, wrong in faults.items():
            if right in line and done.get(right, 0) < (6 if TITLE in wrong else 1):
                line = line.replace(right, wrong)
                done[right] = done.get(right, 0) + 1
        found.append(f"| {line}" if number % 41 == 40 and line[0].islower() else line)
    at = next(place for place, line in enumerate(found) if line.startswith("Assim terminou") or "episódio 110" in line)
    found[at] = found[at].replace("episódio 110", "episódio 11O")
    return [
        *found[:-4],
        "Ficou em 1.0 lugar no torneio de 19O4,",
        "com 2O golos, e em 2.0 lugar no de 1905.",
        *found[-4:],
    ]


def write_book(path: Path) -> Path:
    """The book saved line by line as JSONL."""
    rows = [{"prompt": "", "completion": line} for line in scanned_lines()]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_copy(path: Path) -> Path:
    """The same text as somebody typed it: Markdown with headings, paragraphs of another length, no faults."""
    parts = [f"# {TITLE}"]
    for chapter, name in enumerate(CHAPTERS):
        parts += [f"## {name}", *paragraphs(chapter)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


HEADLINES = ("Da Praia ao Estádio!", "O Homem que Parava Comboios", "Uma Vida de Lama e Glória", "O Último a Sair")
NAMES = (
    "Belmiro Canas", "Custódia Reis", "Honorato Vale", "Ludovino Paz", "Etelvina Moura", "Aníbal Seco", "Querubim Dias",
    "Lopo Marques", "Eugénia Sá", "Zacarias Lima", "Fausto Brito", "Germana Pinto",
)  # fmt: skip


def biography(number: int) -> str:
    """A life as a chat program writes it: headline, date line, caption, bullets, a slogan for a section."""
    name, headline = NAMES[number % len(NAMES)], HEADLINES[number % len(HEADLINES)]
    return f"""# {name}: {headline}

*Ponte Velha, {number + 1} de maio de {1920 + number}*

Foto: {name} junto à ponte.

**{name}** nasceu na rua {number + 1} da vila e {DID[number % len(DID)]}. Jogou {number + 3} épocas pelo Grémio.**

## (Em Números)

- Jogos: {100 + number}
- Golos: {number}

## Infância

Cresceu entre redes e tamancos, e aos {number + 8} anos {DID[(number + 5) % len(DID)]}. Os prémios da escola:

## (A Frase que Resume Tudo)

«Quem não salta a ponte não passa o rio», dizia {name} aos {30 + number} anos.
"""


def write_biographies(folder: Path, count: int = len(NAMES)) -> Path:
    """A folder of lives, one of them in a fence with the words of a chat program around it, and one of a thing."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        text = biography(number)
        if number == 2:
            text = (
                f"Claro! Aqui tens a versão em Markdown da biografia:\n\n```markdown\n{text}```\n\nEspero que ajude!\n"
            )
        (folder / f"vida-{number:02}.md").write_text(text, encoding="utf-8")
    (folder / "campo.md").write_text(
        "# Campo da Eira\n\nFoi inaugurado em 1931, com uma bancada de tábuas e um portão verde.\n", encoding="utf-8"
    )
    (folder / "pagina.md").write_text(
        "**Página 1**\n\nTexto que veio de uma folha solta da gaveta.\n", encoding="utf-8"
    )
    return folder


PRESIDENTS = """Presidentes do Grémio

| Mandato | Presidente |
|---|---|
| 1938-1940 | Lopo Marques |
| 1940-1946 | Etelvina Moura |
| 1946-1951 | Fausto Brito |
"""
STANDINGS = """Campeonato distrital de 1934

Lugar\tEquipa\tJogos\tPontos
1\tGrémio da Ponte Velha\t10\t18
2\tUnião do Vale\t10\t13
3\tMoinho Novo\t10\t9
"""


def write_tables(folder: Path) -> Path:
    """Two tables in text files: one with bars, one with tabs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "presidentes.txt").write_text(PRESIDENTS, encoding="utf-8")
    (folder / "distrital.txt").write_text(STANDINGS, encoding="utf-8")
    return folder


def write_questions(path: Path, count: int = 60) -> Path:
    """Questions and answers; every fifth question has a second answer."""
    rows = []
    for number in range(count):
        rows.append({"question": f"Quantos golos houve na jornada {number}?", "answer": f"Houve {number % 7} golos."})
        if number % 5 == 0:
            rows.append({**rows[-1], "answer": f"Foram {number % 7 + 1}, segundo o jornal."})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
