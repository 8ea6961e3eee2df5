"""The leverage gate and a step behind it, plain and slow: dense inverses, one token and one prompt at a time."""

from __future__ import annotations

import math

import torch
from literal import Hook, base_weight, dense_update, find_hidden, find_key, find_target


def leverage(prior, past, key):
    """ℓ = 1 − kᵀA⁻¹k / kᵀA0⁻¹k with both inverses written out; prior: A0 (m×m), past: P (m×p)."""
    key, past = key.double(), past.double()
    full = torch.linalg.inv(prior + past @ past.T)
    return 1 - (key @ full @ key).item() / (key @ torch.linalg.inv(prior) @ key).item()


def kept_root(prior):
    """A square root of A0⁻¹, which the first step keeps in bfloat16: ‖S k‖² is kᵀA0⁻¹k but for that rounding."""
    return torch.linalg.inv(torch.linalg.cholesky(prior)).bfloat16().double()


def retrieved(prior, past, key, sharpness):
    """k̂ = P softmax(β cos): each edited key's cosine with this one in the metric A0⁻¹, one by one."""
    inverse, key, cosines = torch.linalg.inv(prior), key.double(), []
    length = (kept_root(prior) @ key).square().sum()
    for one in past.double().T:
        cosines.append((one @ inverse @ key) / ((one @ inverse @ one) * length).sqrt())
    weights = [(sharpness * cosine).exp() for cosine in cosines]
    return sum(weight * one for weight, one in zip(weights, past.double().T, strict=True)) / sum(weights)


class Stream:
    """ΔW, all edited keys, τ and the smallest ℓ that an edited key had when it was written, per layer."""

    def __init__(self, model, layers, priors, background, rate, fraction, sharpness):
        self.delta = {layer: torch.zeros_like(base_weight(model, layer)).double() for layer in layers}
        self.past = {layer: torch.zeros(len(priors[layer]), 0).double() for layer in layers}
        self.tau, self.smallest = dict.fromkeys(layers, math.inf), dict.fromkeys(layers, math.inf)
        self.priors, self.background, self.rate, self.fraction = priors, background, rate, fraction
        self.sharpness = sharpness

    def hook(self, layer):
        def opens(key):
            return leverage(self.priors[layer], self.past[layer], key) >= self.tau[layer]

        def retrieve(key):
            return retrieved(self.priors[layer], self.past[layer], key, self.sharpness).to(key.dtype)

        if self.sharpness is None or not self.past[layer].shape[1]:
            return Hook(self.delta[layer], opens=opens)
        return Hook(self.delta[layer], opens=opens, retrieve=retrieve)

    def set_tau(self, layer, keys):
        own = [leverage(self.priors[layer], self.past[layer], key) for key in keys]
        self.smallest[layer] = min(self.smallest[layer], *own)
        ordinary = sorted(leverage(self.priors[layer], self.past[layer], key) for key in self.background[layer])
        place = math.ceil((1 - self.rate) * (len(ordinary) - 1))  # the share of keys at or above it is about `rate`
        self.tau[layer] = max(ordinary[place], self.fraction * self.smallest[layer])


def step(model, tokenizer, requests, stream, prefixes, settings):
    """One whole step; changes `stream`."""
    layers = sorted(stream.delta)
    validated = {layer: stream.hook(layer) for layer in layers}
    targets = [find_target(model, tokenizer, r, layers[-1], prefixes, settings, validated)[0] for r in requests]
    hooks = {layer: Hook(stream.delta[layer]) for layer in layers}  # temporary: they answer everywhere
    for index, layer in enumerate(layers):
        keys = torch.stack([find_key(model, tokenizer, r, layer, prefixes, hooks) for r in requests], 1)
        hidden = torch.stack([find_hidden(model, tokenizer, r, layers[-1], hooks) for r in requests], 1)
        residuals = (torch.stack(targets, 1) - hidden) / (len(layers) - index)
        change = dense_update(stream.priors[layer], 1.0, stream.past[layer], keys, residuals)
        stream.delta[layer] = stream.delta[layer] + change
        stream.past[layer] = torch.cat([stream.past[layer], keys.double()], 1)
        stream.set_tau(layer, [find_key(model, tokenizer, r, layer, (), hooks) for r in requests])
        hooks[layer] = stream.hook(layer)
