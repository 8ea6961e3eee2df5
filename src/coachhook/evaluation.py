"""What a stream writes down: records and metrics after its steps, z-scores at the end."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from coachhook.edit_request import EditRequest
from coachhook.editor import Editor
from coachhook.metrics import PROTOCOLS, Answers, Columns, Question, predict, questions, score
from coachhook.tokens import encode
from coachhook.whole_files import read_checked, write_bytes, write_checked, write_text

if TYPE_CHECKING:
    from coachhook.stream import StreamConfig


class Evaluation:
    """Evaluates a stream's requests: after some steps all requests so far, or, in a single round, each batch's own.

    Arguments:
        base: per protocol the base model's answers to all questions of the stream.
    """

    def __init__(
        self,
        config: StreamConfig,
        editor: Editor,
        stream: Sequence[EditRequest],
        checkpoint: Path,
        base: Mapping[str, Answers],
    ):
        self._config, self._editor, self._stream, self._checkpoint = config, editor, stream, checkpoint
        self._asked, self._base = questions(stream), base

    def run(self, step: int) -> str:
        """Write records and metrics of this step unless they are there; a few words on what came out."""
        records_path, metrics_path = self._paths(step)
        if None in (read_checked(records_path), read_checked(metrics_path)):
            first, edits = self._requests(step)
            places = [place for place, question in enumerate(self._asked) if first <= question.request < edits]
            rows, metrics = [], []
            for protocol in self._protocols(step):
                asked, columns = [self._asked[place] for place in places], self._score(places, protocol)
                rows.append(self._records(step, edits, protocol, asked, columns))
                metrics.append(self._metrics(step, edits, protocol, asked, columns))
            write_checked(records_path, _parquet(pd.concat(rows, ignore_index=True)))
            write_checked(metrics_path, "".join(json.dumps(row) + "\n" for row in metrics).encode())
        shown = json.loads(metrics_path.read_text().splitlines()[0])
        scores = {name: shown[name] for name in ("reliability", "generality", "locality")}
        notes = [f"{name} {value:.3f}" for name, value in scores.items() if value is not None]
        if shown.get("not_scored"):
            notes.append(f"{shown['not_scored']} requests without a true answer are not scored")
        return ": " + ", ".join(notes)

    def write(self, out: Path, further: Mapping[str, float]) -> None:
        """Put the evaluations of all steps together, in order.

        further: numbers about the final model, for the last step's rows.
        """
        out.mkdir(parents=True, exist_ok=True)
        paths = [self._paths(step) for step in self._config.evaluation_steps()]
        if self._config.z_scores:
            z_scores = pd.DataFrame(_z_score_rows(self._editor, self._answered()))
            write_bytes(out / "zscores.parquet", _parquet(z_scores))
        records = pd.concat([pd.read_parquet(path) for path, _ in paths], ignore_index=True)
        write_bytes(out / "records.parquet", _parquet(records))
        single = self._config.round == "single"
        earlier = "" if single else "".join(path.read_text() for _, path in paths[:-1])
        last = self._single_round(records) if single else map(json.loads, paths[-1][1].read_text().splitlines())
        write_text(out / "metrics.jsonl", earlier + "".join(json.dumps({**row, **further}) + "\n" for row in last))

    def _requests(self, step: int) -> tuple[int, int]:
        """The requests (first, one behind the last) that a step's evaluation is about."""
        size = self._config.batch_size
        first = (step - 1) * size if self._config.round == "single" else 0
        return first, min(step * size, len(self._stream))

    def _protocols(self, step: int) -> tuple[str, ...]:
        last = self._config.round == "single" or step == self._config.evaluation_steps()[-1]
        return self._config.protocols if last else self._config.protocols[:1]

    def _score(self, places: Sequence[int], protocol: str) -> Columns:
        asked = [self._asked[place] for place in places]
        base = [self._base[protocol][place] for place in places]
        given = predict(self._editor.model, self._editor.tokenizer, asked, protocol)
        return score(self._editor.tokenizer, asked, given, base, protocol)

    def _records(
        self, step: int, edits: int, protocol: str, asked: Sequence[Question], columns: Columns
    ) -> pd.DataFrame:
        frame = pd.DataFrame(
            {
                "step": step,
                "edits": edits,
                "batch": [question.request // self._config.batch_size + 1 for question in asked],
                "request": [question.request for question in asked],
                "case_id": [self._case_id(question) for question in asked],
                "kind": [question.kind for question in asked],
                "prompt": [question.index for question in asked],
                "protocol": protocol,
                "score": columns["score"],
                "superseded": [self._stream[question.request].superseded for question in asked],
                **columns,
            }
        )
        types = {"step": "int32", "edits": "int32", "batch": "int32", "request": "int32", "prompt": "int16"}
        return frame.astype({**types, **dict.fromkeys(columns, "float64"), "score": "float32"})

    def _case_id(self, question: Question) -> str | None:
        case_id = self._stream[question.request].case_id
        return None if case_id is None else str(case_id)  # one type for the whole column

    def _metrics(self, step: int, edits: int, protocol: str, asked: Sequence[Question], columns: Columns) -> dict:
        """Every protocol's row has reliability, generality, locality and their mean; a protocol's own numbers follow.

        Under "rome" the three are its efficacy, paraphrase and neighbourhood success, which stand there by these
        names too, beside their magnitudes, the score, the base model's successes and the requests not scored.
        """
        summarise = PROTOCOLS[protocol].summarise
        everything = summarise(asked, columns)
        first = (step - 1) * self._config.batch_size
        latest = [place for place, question in enumerate(asked) if question.request >= first]
        current = summarise(
            [asked[place] for place in latest],
            {name: [values[place] for place in latest] for name, values in columns.items()},
        )
        row = {"step": step, "edits": edits, "protocol": protocol, **everything.row()}
        row |= {f"{name}_current_batch": getattr(current, name) for name in everything.scores()}
        thresholds = self._editor.thresholds()
        row["alpha"] = thresholds and {str(layer): value for layer, value in thresholds.items()}
        return row

    def _single_round(self, records: pd.DataFrame) -> Iterator[dict]:
        """One row per protocol over all requests, each as it was right after its own batch; no α is common to them."""
        step = self._config.evaluation_steps()[-1]
        for protocol in self._config.protocols:
            rows = records[records.protocol == protocol]  # in the order of the questions
            columns = {
                name: [None if math.isnan(value) else value for value in rows[name].tolist()]
                for name in PROTOCOLS[protocol].columns
            }
            yield {**self._metrics(step, len(self._stream), protocol, self._asked, columns), "alpha": None}

    def _answered(self) -> Iterator[tuple[int, EditRequest]]:
        """The requests that the final model was edited with, with their places in the stream."""
        first, end = self._requests(self._config.evaluation_steps()[-1])
        return zip(range(first, end), self._stream[first:end], strict=True)

    def _paths(self, step: int) -> tuple[Path, Path]:
        return self._checkpoint / f"{step:06d}.records.parquet", self._checkpoint / f"{step:06d}.metrics.jsonl"


def _z_score_rows(editor: Editor, requests: Iterator[tuple[int, EditRequest]]) -> Iterator[dict]:
    """z of each token of edit prompts and paraphrases: the edited subject's last token against the others."""
    prompts = [
        (kind, position, text, request.subject_span(text)[1])
        for position, request in requests
        for kind, texts in (("edit", [request.text]), ("paraphrase", request.paraphrase_texts))
        for text in texts
        if request.subject.lower() in text.lower()
    ]
    for start in range(0, len(prompts), 256):
        group = prompts[start : start + 256]
        for layer, z, real in editor.z_scores([text for _, _, text, _ in group]):
            for row, (kind, position, text, end) in enumerate(group):
                subject = encode(editor.tokenizer, text, subject_end=end).subject_last
                for place, value in enumerate(z[row][real[row]].tolist()):
                    role = "subject" if place == subject else "other"
                    yield {"layer": layer, "kind": kind, "request": position, "role": role, "z": value}


def _parquet(frame: pd.DataFrame) -> bytes:
    content = io.BytesIO()
    frame.to_parquet(content, index=False)
    return content.getvalue()
