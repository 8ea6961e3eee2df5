"""Metric protocols by name; a table never mixes two of them."""

from coachhook.metrics.asking import PROTOCOLS, check_protocol, predict, predict_base, score
from coachhook.metrics.protocols import Answers, Columns
from coachhook.metrics.questions import Question, questions
from coachhook.metrics.rome import RomeMetrics
from coachhook.metrics.summary import Metrics, summarise

__all__ = [
    "PROTOCOLS",
    "Answers",
    "Columns",
    "Metrics",
    "Question",
    "RomeMetrics",
    "check_protocol",
    "predict",
    "predict_base",
    "questions",
    "score",
    "summarise",
]
