"""What the leverage gate gives, held against the paper's gate and against ‖ΔW k‖/‖k‖ with the same calibration.

python benchmarks/gate.py tradeoff MODEL COVARIANCE REQUESTS --name mini --seed 0 --out gate.csv
    400 edits behind the leverage gate, then the same ΔW behind other gates, thresholds, layers and sketches
python benchmarks/gate.py edits MODEL COVARIANCE REQUESTS [REQUESTS ...] --name mini --seed 0 --out gate.csv
    scores as the stream grows, to 1,000 edits and more; several files are joined, one request per fact
python benchmarks/gate.py draw gate.csv figures/gate.pdf figures/gate.png

Rows are appended to the CSV file that `coachhook.gate_figure` draws. What MODEL and the others are is in results/ after
a study. --set gives hyper-parameters of the method, such as --set covariance_weight=50.
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from coachhook import Editor, gate_figure, read_requests
from coachhook.covariance import read_covariance
from coachhook.figure_style import save, style
from coachhook.gates import NoGate, PaperGate
from coachhook.keys import encode_edit
from coachhook.leverage import LeverageGate, prior_sketch
from coachhook.metrics import PROTOCOLS, predict, predict_base, questions, score
from coachhook.solver import FactoredLeastSquares
from coachhook.stream_draw import draw_requests
from coachhook.tracing import rewrite_inputs

FRACTIONS, RATES = (0.3, 0.5, 0.7, 0.8, 0.9), (0.02, 0.05, 0.1)
FILLERS = (0, 2, 5, 10, 20, 40)  # tokens of unrelated text before a prompt


@dataclass
class RatioGate:
    """W_h answers where ‖ΔW k‖/‖k‖ ≥ τ."""

    threshold: float
    nbytes: int = 0

    def swap(self, change: Tensor, real: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        return change.norm(dim=-1) / keys.float().norm(dim=-1) >= self.threshold


class Examined:
    """An editor under study: its edited keys are kept, and the base model's answers are computed once."""

    def __init__(self, options, method: str, requests, **hyperparameters):
        model = AutoModelForCausalLM.from_pretrained(options.model)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.covariance = read_covariance(options.covariance, model)
        values = {"seed": options.seed, **options.set} | hyperparameters
        values = {name: value for name, value in values.items() if value is not None}
        self.editor = Editor(model, tokenizer, method, self.covariance, **values)
        self.requests, self.keys = requests, {}
        asked = questions(requests[:: max(1, len(requests) // options.evaluated)])
        self._asked = asked, predict_base(model, tokenizer, asked, "easyedit") if asked else []
        self.method = self.editor._method
        written = self.method._set_gate

        def keep(layer, keys, step):
            self.keys.setdefault(layer, []).append(keys)
            written(layer, keys, step)

        self.method._set_gate = keep

    def scores(self) -> dict[str, float]:
        asked, base = self._asked
        answers = predict(self.editor.model, self.editor.tokenizer, asked, "easyedit")
        columns = score(self.editor.tokenizer, asked, answers, base, "easyedit")
        return picked(PROTOCOLS["easyedit"].summarise(asked, columns))

    def edited(self, layer: int) -> Tensor:
        return torch.cat(self.keys[layer])

    def background(self, layer: int) -> Tensor:
        return self.covariance.background[layer]

    def set_gates(self, gate_of) -> None:
        for hook in self.method.hooks:
            hook.gate = gate_of(hook)


def picked(metrics) -> dict[str, float]:
    names = ("reliability", "generality", "locality", "locality_same_subject")
    return {name: getattr(metrics, name) for name in names}


def quantile(values: Tensor, rate: float) -> float:
    return torch.quantile(values, 1 - rate, interpolation="higher").item()


def ratios(hook, keys: Tensor) -> Tensor:
    return hook.change(keys).norm(dim=-1) / keys.float().norm(dim=-1)


def thresholds(examined: Examined, gates: dict[int, LeverageGate]):
    """(name, setting, gate of each hook): the same ΔW behind other gates and thresholds."""
    for fraction in FRACTIONS:
        yield (
            "leverage, edited fraction",
            fraction,
            lambda hook, f=fraction: replace(
                gates[hook.layer], threshold=f * gates[hook.layer].leverage(examined.edited(hook.layer)).min().item()
            ),
        )
        yield (
            "ratio, edited fraction",
            fraction,
            lambda hook, f=fraction: RatioGate(f * ratios(hook, examined.edited(hook.layer)).min().item()),
        )
    for rate in RATES:
        yield (
            "leverage, background rate",
            rate,
            lambda hook, r=rate: replace(
                gates[hook.layer], threshold=quantile(gates[hook.layer].leverage(examined.background(hook.layer)), r)
            ),
        )
        yield (
            "ratio, background rate",
            rate,
            lambda hook, r=rate: RatioGate(quantile(ratios(hook, examined.background(hook.layer)), r)),
        )
    yield "off", 0, lambda hook: NoGate()
    joint = min(gate.threshold for gate in gates.values())
    yield "leverage, one threshold", 0, lambda hook: replace(gates[hook.layer], threshold=joint)
    layers = sorted(gates)
    for gating in [(layer,) for layer in layers] + [tuple(o for o in layers if o != layer) for layer in layers]:
        yield (
            "leverage, gate at " + "+".join(map(str, gating)),
            0,
            lambda hook, g=gating: gates[hook.layer] if hook.layer in g else NoGate(),
        )


@torch.no_grad()
def opened(examined: Examined, filler: list[int]) -> dict[str, float]:
    """Where the gates open, behind `filler`: share of subjects' last tokens (at all layers), and of other tokens."""
    editor, method = examined.editor, examined.method
    subjects, others = [], []
    for request in examined.requests[:100]:
        encoded = encode_edit(editor.tokenizer, request)
        ids, place = torch.tensor([[*filler, *encoded.ids]]), len(filler) + encoded.subject_last
        with rewrite_inputs(editor._method.parts, method.config.layers, stop=False) as keys:
            editor.model(ids, use_cache=False)
        swaps = [hook.gate.swap(hook.change(keys[hook.layer]), None, keys[hook.layer])[0] for hook in method.hooks]
        subjects.append(torch.stack(swaps)[:, place].all().item())
        others += [swap[:place].float().mean().item() for swap in swaps if place]
    return {"subjects": sum(subjects) / len(subjects), "others": sum(others) / max(1, len(others))}


def lengths(examined: Examined, gate: str):
    text = examined.editor.tokenizer(Path(examined.text).read_text(encoding="utf-8")[:4000])["input_ids"]
    for count in FILLERS:
        yield {"kind": "length", "gate": gate, "setting": count, **opened(examined, text[:count])}


def agreement(examined: Examined, gates: dict[int, LeverageGate], weight: float):
    """Share of tokens that a sketch decides as A0's exact root does, each with its own τ; at all layers together."""
    edited, ordinary = examined.edited, examined.background
    for rows in (64, 128, 256, 512, 768):
        same = []
        for layer, gate in gates.items():
            width = examined.covariance.matrices[layer].shape[0]
            solver = FactoredLeastSquares(examined.covariance.matrices[layer], weight)
            exact = solver.prior_root(torch.eye(width)).T.float()
            decisions = []
            for sketch in (exact, prior_sketch(solver, width, rows, 0)):
                other = gate.grown(gate.factors, sketch)
                config = examined.method.config
                tau = max(
                    quantile(other.leverage(ordinary(layer)), config.false_positive_rate),
                    config.edited_fraction * other.leverage(edited(layer)).min().item(),
                )
                tokens = torch.cat([ordinary(layer), examined.prompt_keys[layer]])
                decisions.append(other.leverage(tokens) >= tau)
            same.append((decisions[0] == decisions[1]).float().mean().item())
        yield {"kind": "sketch", "gate": "leverage", "setting": rows, "agreement": sum(same) / len(same)}


@torch.no_grad()
def prompt_keys(examined: Examined) -> dict[int, Tensor]:
    """Keys of all tokens of all prompts and paraphrases."""
    layers, kept = examined.method.config.layers, {}
    for request in examined.requests:
        for text in (request.text, *(paraphrase.replace("{}", request.subject) for paraphrase in request.paraphrases)):
            with rewrite_inputs(examined.method.parts, layers) as keys:
                examined.method.parts.backbone(torch.tensor([examined.editor.tokenizer(text)["input_ids"]]))
            for layer in layers:
                kept.setdefault(layer, []).append(keys[layer][0])
    return {layer: torch.cat(parts) for layer, parts in kept.items()}


def tradeoff(options):
    requests = draw_requests(read_requests(options.requests[0]), options.edits, options.seed)
    examined = Examined(options, "coachhook-leverage", requests)
    examined.text = Path(options.model) / "text.txt"
    edit(examined, requests, options.batch_size)
    yield {"kind": "tradeoff", "gate": "leverage", "setting": 0, **examined.scores()}
    gates = {hook.layer: hook.gate for hook in examined.method.hooks}
    examined.prompt_keys = prompt_keys(examined)
    yield from lengths(examined, "leverage")
    yield from agreement(examined, gates, examined.method.config.covariance_weight)
    for gate, setting, gate_of in thresholds(examined, gates):
        examined.set_gates(gate_of)
        yield {"kind": "tradeoff", "gate": gate, "setting": setting, **examined.scores()}
    examined.editor.close()
    paper = Examined(options, "coachhook", requests, **options.paper)
    paper.text = examined.text
    edit(paper, requests, options.batch_size)
    yield {"kind": "tradeoff", "gate": "paper", "setting": 0, **paper.scores()}
    assert all(isinstance(hook.gate, PaperGate) for hook in paper.method.hooks)
    yield from lengths(paper, "paper")


def edits(options):
    requests, facts = [], set()
    for path in options.requests:
        for request in read_requests(path):
            if (request.subject, request.relation) not in facts:
                facts.add((request.subject, request.relation))
                requests.append(request)
    requests = draw_requests(requests, min(options.edits, len(requests)), options.seed)
    for method, gate in (("coachhook-leverage", "leverage"), ("coachhook", "paper"), ("coachhook-nohook", "off")):
        examined = Examined(options, method, [], **({} if gate == "leverage" else options.paper))
        for start in range(0, len(requests), options.every):
            edit(examined, requests[start : start + options.every], options.batch_size)
            done = requests[: start + options.every]
            scores = picked(examined.editor.evaluate(done[:: max(1, len(done) // options.evaluated)]))
            yield {"kind": "edits", "gate": gate, "setting": len(done), **scores}
        examined.editor.close()


def edit(examined: Examined, requests, batch_size: int) -> None:
    for start in range(0, len(requests), batch_size):
        examined.editor.edit(requests[start : start + batch_size])


def draw(csv: str, pdf: str, png: str) -> None:
    with style():
        save(gate_figure.draw(pd.read_csv(csv)), pdf, png)


def append(row: dict, options) -> None:
    columns = ["kind", "model", "seed", "gate", "setting", "reliability", "generality", "locality"]
    columns += ["locality_same_subject", "subjects", "others", "agreement"]
    frame = pd.DataFrame([{"model": options.name, "seed": options.seed, **row}], columns=columns)
    out = Path(options.out)
    frame.to_csv(out, mode="a", header=not out.exists(), index=False, float_format="%.6g", lineterminator="\n")
    print(f"{time.monotonic() - options.started:5.0f} s", row, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["draw"]:
        draw(*sys.argv[2:])
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tradeoff", "edits"))
    parser.add_argument("model")
    parser.add_argument("covariance")
    parser.add_argument("requests", nargs="+")
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--edits", type=int, default=400)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument(
        "--paper", nargs="*", default=[], help="other hyper-parameters for the paper's gate; null: none"
    )
    parser.add_argument("--evaluated", type=int, default=100, help="requests that scores are taken of")
    options = parser.parse_args()
    for name in ("set", "paper"):
        pairs = (pair.split("=", 1) for pair in getattr(options, name))
        setattr(options, name, {key: yaml.safe_load(value) for key, value in pairs})
    options.started = time.monotonic()
    for row in {"tradeoff": tradeoff, "edits": edits}[options.what](options):
        append(row, options)
