"""Plain, slow implementations of the equations, which the library is held against.

One prompt at a time, whole-model forwards, dense float64 solves; no padding, no caching, no batching, nothing shared
with the library but the requests. Shapes: K (m×u) keys as columns, R (d×u) residuals, ΔW (d×m).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

BLOCK = {
    "gpt2": "transformer.h.{}",
    "gptj": "transformer.h.{}",
    "gpt_neox": "gpt_neox.layers.{}",
    "opt": "model.decoder.layers.{}",
    "gemma3": "model.language_model.layers.{}",
}
REWRITE = {
    "gpt2": "mlp.c_proj",
    "gptj": "mlp.fc_out",
    "gpt_neox": "mlp.dense_4h_to_h",
    "opt": "fc2",
    "phi": "mlp.fc2",
}


def block(model, layer):
    return model.get_submodule(BLOCK.get(model.config.model_type, "model.layers.{}").format(layer))


def rewrite_module(model, layer):
    return block(model, layer).get_submodule(REWRITE.get(model.config.model_type, "mlp.down_proj"))


def base_weight(model, layer):
    """W0 (d×m); GPT-2 stores its transpose."""
    weight = rewrite_module(model, layer).weight.detach()
    return weight.T if model.config.model_type == "gpt2" else weight


@dataclass
class Hook:
    """ΔW of a layer; it answers where z ≥ `alpha`, or where `opens(key)` is true; without either, everywhere.

    Where it `opens` it adds ΔW `retrieve(key)`, if that is given, else ΔW key.
    """

    delta: torch.Tensor
    alpha: float | None = None
    opens: Callable[[torch.Tensor], bool] | None = None
    retrieve: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass
class Pass:
    """What one forward pass of one prompt showed: logits (time×vocabulary), keys and block outputs per layer."""

    logits: torch.Tensor | None = None
    keys: dict = field(default_factory=dict)
    hidden: dict = field(default_factory=dict)


def z_scores(distances):
    """(M − mean) / unbiased standard deviation; one token alone has none."""
    distances = distances.detach()
    count = len(distances)
    if count < 2:
        return torch.full_like(distances, math.nan)
    mean = sum(distances) / count
    deviation = math.sqrt(sum((distance - mean) ** 2 for distance in distances) / (count - 1))
    return (distances - mean) / deviation if deviation else torch.full_like(distances, math.nan)


def run(model, ids, hooks=None, added=None):
    """One whole forward pass over one prompt.

    hooks: {layer: Hook}. added: (layer, position, vector), the vector added to that block's output there.
    """
    seen, handles = Pass(), []

    def on_rewrite(layer):
        def answer(module, args, output):
            keys = args[0].reshape(-1, args[0].shape[-1])  # one prompt; OPT leaves its batch of one out
            seen.keys[layer] = keys.detach()
            if layer not in (hooks or {}):
                return None
            hook = hooks[layer]
            delta = hook.delta.to(keys.dtype)
            bias = 0 if getattr(module, "bias", None) is None else module.bias
            edited = keys @ (base_weight(model, layer) + delta).T + bias
            if hook.alpha is None and hook.opens is None:
                return edited.view(output.shape)
            base = output.view(edited.shape)
            if hook.retrieve is not None:
                edited = torch.stack([row + delta @ hook.retrieve(key) for row, key in zip(base, keys, strict=True)])
            if hook.opens is not None:
                rows = [edited[t] if hook.opens(keys[t].detach()) else base[t] for t in range(len(keys))]
                return torch.stack(rows).view(output.shape)
            scores = z_scores((keys @ delta.T).norm(dim=-1))
            rows = [edited[t] if scores[t] >= hook.alpha else base[t] for t in range(len(keys))]
            return torch.stack(rows).view(output.shape)

        return answer

    def on_block(layer):
        def answer(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if added is not None and added[0] == layer:
                hidden = hidden.clone()
                hidden[0, added[1]] = hidden[0, added[1]] + added[2]
            seen.hidden[layer] = hidden[0]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return answer

    for layer in range(model.config.get_text_config().num_hidden_layers):
        handles.append(rewrite_module(model, layer).register_forward_hook(on_rewrite(layer)))
        handles.append(block(model, layer).register_forward_hook(on_block(layer)))
    try:
        seen.logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return seen


def token_ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def subject_last(tokenizer, request, prefix=""):
    """Place of the subject's last token: what the text up to the subject's end is tokenised to."""
    before = request.prompt[: request.prompt.index("{}")]
    return len(token_ids(tokenizer, prefix + before + request.subject)) - 1


def find_target(model, tokenizer, request, layer, prefixes, settings, hooks=None):
    """z of one request: Adam on δ, written out; (z, h, last loss)."""
    target = token_ids(tokenizer, " " + request.target_new)
    prompts = [token_ids(tokenizer, prefix + request.text) for prefix in ("", *prefixes)]
    places = [subject_last(tokenizer, request, prefix) for prefix in ("", *prefixes)]
    essence = token_ids(tokenizer, f"{request.subject} is a")
    essence_place = len(token_ids(tokenizer, request.subject)) - 1
    with torch.no_grad():
        hidden = run(model, [*prompts[0], *target], hooks).hidden[layer][places[0]]
        base = run(model, essence, hooks).logits[essence_place].log_softmax(-1)
    delta = torch.zeros_like(hidden)
    first, second = torch.zeros_like(hidden), torch.zeros_like(hidden)
    for step in range(settings.steps + 1):
        delta.requires_grad_()
        losses = []
        for prompt, place in zip(prompts, places, strict=True):
            logits = run(model, [*prompt, *target], hooks, (layer, place, delta)).logits.log_softmax(-1)
            likelihoods = [logits[len(prompt) - 1 + i, token] for i, token in enumerate(target)]
            losses.append(-sum(likelihoods) / len(likelihoods))
        edited = run(model, essence, hooks, (layer, essence_place, delta)).logits[essence_place].log_softmax(-1)
        divergence = (base.exp() * (base - edited)).sum()
        penalty = delta.norm() / hidden.norm() ** 2
        loss = sum(losses) / len(losses) + settings.kl_factor * divergence + settings.weight_decay * penalty
        if loss < settings.stop_loss or step == settings.steps:
            return (hidden + delta).detach(), hidden, loss.item()
        gradient = torch.autograd.grad(loss, delta)[0]
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        move = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        delta = delta.detach() - settings.learning_rate * move
        if delta.norm() > settings.clamp * hidden.norm():
            delta = delta / delta.norm() * settings.clamp * hidden.norm()
    raise AssertionError("unreachable")


@torch.no_grad()
def find_key(model, tokenizer, request, layer, prefixes, hooks=None):
    """The plain prompt's key and the mean of the prefixed prompts' keys, each with weight one half."""
    keys = []
    for prefix in ("", *prefixes):
        seen = run(model, token_ids(tokenizer, prefix + request.text), hooks)
        keys.append(seen.keys[layer][subject_last(tokenizer, request, prefix)])
    return (keys[0] + sum(keys[1:]) / len(prefixes)) / 2 if prefixes else keys[0]


@torch.no_grad()
def find_hidden(model, tokenizer, request, layer, hooks=None):
    """h at the output of block `layer`, at the subject's last token of the plain prompt."""
    seen = run(model, token_ids(tokenizer, request.text), hooks)
    return seen.hidden[layer][subject_last(tokenizer, request)]


def dense_update(covariance, weight, past, keys, residuals):
    """R Kᵀ (λC0 + P Pᵀ + K Kᵀ)⁻¹, with the inverse written out; past: P (m×p) or None."""
    system = weight * covariance.double() + keys.double() @ keys.double().T
    if past is not None:
        system = system + past.double() @ past.double().T
    return residuals.double() @ keys.double().T @ torch.linalg.inv(system)


@dataclass
class Stream:
    """What a stream of steps carries on: ΔW, earlier keys (m×p), and α per layer."""

    delta: dict
    past: dict
    alpha: dict

    @classmethod
    def start(cls, model, layers, alpha):
        zeros = {layer: torch.zeros_like(base_weight(model, layer)).double() for layer in layers}
        return cls(zeros, dict.fromkeys(layers), dict.fromkeys(layers, alpha))

    def validated(self):
        return {layer: Hook(self.delta[layer], self.alpha[layer]) for layer in self.delta}


def step(model, tokenizer, requests, covariances, stream, prefixes, settings, weight, past_weight=1.0):
    """One whole step of CoachHooK; changes `stream`. Without a gate (α None) it is the no-hook ablation."""
    layers = sorted(stream.delta)
    last = layers[-1]
    targets = [
        find_target(model, tokenizer, request, last, prefixes, settings, stream.validated())[0] for request in requests
    ]
    hooks = {layer: Hook(stream.delta[layer], None) for layer in layers}  # temporary: they answer everywhere
    for index, layer in enumerate(layers):
        keys = torch.stack([find_key(model, tokenizer, r, layer, prefixes, hooks) for r in requests], 1)
        hidden = torch.stack([find_hidden(model, tokenizer, r, last, hooks) for r in requests], 1)
        residuals = (torch.stack(targets, 1) - hidden) / (len(layers) - index)
        past = stream.past[layer]
        change = dense_update(covariances[layer], weight, past, keys, residuals)
        stream.delta[layer] = stream.delta[layer] + change
        hooks[layer] = Hook(stream.delta[layer], stream.alpha[layer])
        kept = math.sqrt(past_weight) * keys
        stream.past[layer] = kept if past is None else torch.cat([past, kept], 1)
    for layer in layers:
        if stream.alpha[layer] is not None:
            stream.alpha[layer] = min(
                stream.alpha[layer], *(highest_z(model, tokenizer, r, layer, stream) for r in requests)
            )


@torch.no_grad()
def highest_z(model, tokenizer, request, layer, stream):
    """max over tokens of z, on the base model's keys of the prompt without its target."""
    keys = run(model, token_ids(tokenizer, request.text)).keys[layer]
    return max(z_scores((keys @ stream.delta[layer].to(keys.dtype).T).norm(dim=-1)).tolist())


@torch.no_grad()
def covariance(model, tokenizer, texts, layers, max_tokens, document_tokens=None):
    """(C0 per layer, number of tokens, all keys per layer), document by document."""
    keys = {layer: [] for layer in layers}
    left = max_tokens
    for text in texts:
        ids = token_ids(tokenizer, text)[: model.config.max_position_embeddings][:document_tokens][:left]
        left -= len(ids)
        if ids:
            seen = run(model, ids)
            for layer in layers:
                keys[layer] += list(seen.keys[layer].double())
    moments = {layer: sum(torch.outer(k, k) for k in keys[layer]) / len(keys[layer]) for layer in layers}
    return moments, max_tokens - left, {layer: torch.stack(keys[layer]) for layer in layers}


@torch.no_grad()
def teacher_forced(model, tokenizer, prompt, answer):
    """argmax before each token of the answer, which stands in the sequence."""
    start, target = token_ids(tokenizer, prompt), token_ids(tokenizer, " " + answer)
    logits = model(torch.tensor([[*start, *target]]), use_cache=False).logits[0]
    return tuple(logits[len(start) - 1 + i].argmax().item() for i in range(len(target)))


@torch.no_grad()
def generated(model, tokenizer, prompt, answer):
    """Greedy, token by token, without a cache."""
    ids = token_ids(tokenizer, prompt)
    start = len(ids)
    for _ in token_ids(tokenizer, " " + answer):
        ids = [*ids, model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()]
    return tuple(ids[start:])


@torch.no_grad()
def mean_log_likelihood(model, tokenizer, prompt, answer):
    """Mean over the answer's tokens of log P(token | what stands before it)."""
    start, target = token_ids(tokenizer, prompt), token_ids(tokenizer, " " + answer)
    logits = model(torch.tensor([[*start, *target]]), use_cache=False).logits[0]
    of_tokens = [logits[len(start) - 1 + i].log_softmax(-1)[token].item() for i, token in enumerate(target)]
    return sum(of_tokens) / len(of_tokens)


def rome(model, tokenizer, requests):
    """ROME's successes and magnitudes, by request and prompt; requests without a true answer are left out."""
    lists = {kind: [] for kind in ("efficacy", "paraphrase", "neighbourhood")}
    for request in requests:
        if request.target_true is None:
            continue
        neighbours = [probe.prompt for probe in request.locality if probe.kind == "other_subject"]
        prompts = {"efficacy": [request.text], "paraphrase": request.paraphrase_texts, "neighbourhood": neighbours}
        for kind, texts in prompts.items():
            successes, magnitudes = [], []
            for text in texts:
                new = mean_log_likelihood(model, tokenizer, text, request.target_new)
                true = mean_log_likelihood(model, tokenizer, text, request.target_true)
                wanted, other = (true, new) if kind == "neighbourhood" else (new, true)
                successes.append(wanted > other)
                magnitudes.append(math.exp(wanted) - math.exp(other))
            lists[kind].append((sum(successes) / len(texts), sum(magnitudes) / len(texts)))
    found = {}
    for kind, pairs in lists.items():
        found[kind] = sum(success for success, _ in pairs) / len(pairs)
        found[f"{kind}_magnitude"] = sum(magnitude for _, magnitude in pairs) / len(pairs)
    three = [found[kind] for kind in lists]
    found["score"] = 3 / sum(1 / success for success in three) if all(three) else 0.0
    return found
