"""A literal step of a locate-then-edit method without a gate, for any update rule; see `literal`."""

import torch
from literal import Hook, base_weight, find_hidden, find_key, find_target


def start(model, layers):
    """ΔW = 0 (d×m, float64) per layer."""
    return {layer: torch.zeros_like(base_weight(model, layer)).double() for layer in layers}


def everywhere(deltas):
    return {layer: Hook(delta) for layer, delta in deltas.items()}


def keys_of(model, tokenizer, requests, layer, prefixes, deltas):
    """K (m×u) with the edits in `deltas`."""
    hooks = everywhere(deltas)
    return torch.stack([find_key(model, tokenizer, r, layer, prefixes, hooks) for r in requests], 1).double()


def step(model, tokenizer, requests, deltas, prefixes, settings, update):
    """One step; `deltas` changes. update(layer, K, R) gives Δ (d×m); in it `deltas` has what is edited so far."""
    layers = sorted(deltas)
    last = layers[-1]
    targets = [
        find_target(model, tokenizer, request, last, prefixes, settings, everywhere(deltas))[0] for request in requests
    ]
    for index, layer in enumerate(layers):
        keys = keys_of(model, tokenizer, requests, layer, prefixes, deltas)
        hidden = [find_hidden(model, tokenizer, request, last, everywhere(deltas)) for request in requests]
        residuals = (torch.stack(targets, 1) - torch.stack(hidden, 1)) / (len(layers) - index)
        deltas[layer] = deltas[layer] + update(layer, keys, residuals.double())
