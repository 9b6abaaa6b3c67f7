"""Taking a run elsewhere from the page: what can be chosen, what is said meanwhile, and what is there afterwards."""

import json
import shutil

import pytest
from browsing import Server, expect, opened, press

from qlora_core.runs.run import Run

pytestmark = pytest.mark.browser


def test_choices_of_a_format_reach_its_export(browser, trained, tmp_path):
    run = Run(shutil.copytree(trained.path, tmp_path / "runs" / trained.name))
    flags = ["--runs-dir", run.path.parent, "--run", run.name, "--lang", "pt"]
    with Server(tmp_path / "server.log", *flags) as server, opened(browser, server.address) as page:
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
