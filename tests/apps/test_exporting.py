"""A run is exported and judged from the page, and what is there afterwards is looked at."""

import json
import shutil
from types import SimpleNamespace

import pytest
from browsing import Server, expect, opened, press

from qlora_core.evaluation.verdict import is_whole
from qlora_core.runs.run import Run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory):
    """A trained run, and the address of a page in Portuguese that shows it."""
    place = tmp_path_factory.mktemp("served")
    run = Run(shutil.copytree(trained.path, place / "runs" / trained.name))
    flags = ["--runs-dir", run.path.parent, "--run", run.name, "--lang", "pt"]
    with Server(place / "server.log", *flags) as server:
        yield SimpleNamespace(run=run, address=server.address)


def test_choices_of_a_format_reach_its_export(browser, served):
    run = served.run
    with opened(browser, served.address) as page:
        page.get_by_text("Autónomo, e não perde nada").first.wait_for()
        fold = page.locator("details", has_text="Mais sobre esta exportação")
        expect(fold).not_to_have_attribute("open", "")
        page.get_by_role("radio", name="Um só modelo", exact=True).click()
        fold.locator("summary").click()
        expect(fold.get_by_label("Escrever a base ao lado")).to_have_count(0)
        fold.get_by_label("Bits por peso").select_option("16: nada é arredondado")
        fold.get_by_label("Que adaptadores").select_option("os últimos, do fim do treino")
        press(page, "Exportar")
        expect(page.get_by_text("Em comparação com o treino")).to_be_visible()
        expect(page.get_by_text("Aberto de novo com mlx-lm")).to_be_visible()
        expect(fold.get_by_label("Bits por peso")).to_have_value("16: nada é arredondado")  # what was chosen stays
    made = json.loads((run.path / "export" / "fused" / "metrics.json").read_text(encoding="utf-8"))
    assert (made["adapters"], made["fused"]["form"]) == ("final", "16")
    assert made["verification"]["within"]


def test_a_run_is_judged_where_somebody_asks_for_it(browser, served, tmp_path):
    """By a process of its own, with its verdict, measures and facts on the page as soon as it is made."""
    with opened(browser, served.address) as page:
        expect(page.get_by_text("Ainda não se perguntou nada")).to_be_visible()
        press(page, "Descobrir")
        expect(page.get_by_text("Factos recordados (perguntas treinadas)").first).to_be_visible()
        expect(page.get_by_role("button", name="Perguntar tudo de novo", exact=True)).to_be_enabled()
        expect(page.get_by_text("Ainda não se perguntou nada")).to_have_count(0)
        page.locator("summary", has_text="O que foi feito de cada facto").click()
        page.screenshot(path=tmp_path / "judged.png", full_page=True)
    assert is_whole(served.run.verdict())
