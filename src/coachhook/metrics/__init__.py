"""Metric protocols by name; a table never mixes two of them."""

from coachhook.metrics.protocols import PROTOCOLS, Answers, predict, predict_base, score
from coachhook.metrics.questions import Question, questions
from coachhook.metrics.summary import Metrics, summarise

__all__ = ["PROTOCOLS", "Answers", "Metrics", "Question", "predict", "predict_base", "questions", "score", "summarise"]
