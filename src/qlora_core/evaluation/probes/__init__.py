"""What base and tuned model are probed with beside the run's own questions, and how their answers are judged.

`written` holds texts and questions that come with the package. `neighbours` makes questions about invented names out of
the run's own, `memory` finds beginnings of trained rows and what was trained behind them. `judging` says what an answer
does: decline, repeat one of the run's facts, take one fact for another. No model is asked here.
"""

from .judging import Confusion, Confusions, Invention, confusion, declines, judge_invention
from .memory import (
    ExtractionProbe,
    MemoryProbe,
    Repeated,
    extracted,
    extraction_probes,
    memory_probes,
    repeated,
)
from .neighbours import neighbour_questions
from .written import (
    GeneralQuestion,
    GeneralText,
    Probe,
    general_questions,
    general_texts,
    nonexistent_questions,
    shipped_sha256,
)

__all__ = [
    "Confusion",
    "Confusions",
    "ExtractionProbe",
    "GeneralQuestion",
    "GeneralText",
    "Invention",
    "MemoryProbe",
    "Probe",
    "Repeated",
    "confusion",
    "declines",
    "extracted",
    "extraction_probes",
    "general_questions",
    "general_texts",
    "judge_invention",
    "memory_probes",
    "neighbour_questions",
    "nonexistent_questions",
    "repeated",
    "shipped_sha256",
]
