"""Peak memory of training an editor at small shapes (random weights, two steps), and what `plan` announces.

python benchmarks/training_memory.py                          all shapes, each in a process of its own
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from covariance_memory import WORDS, peak, word_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from coachhook import EditRequest, Probe
from coachhook.editors import training as training_module
from coachhook.hyperparameters import configure, registered
from coachhook.preflight import plan_training

GPT2 = GPT2Config(n_layer=6, n_embd=384, n_head=6, vocab_size=8000, bos_token_id=0, eos_token_id=0)
LLAMA = LlamaConfig(
    num_hidden_layers=6, hidden_size=384, intermediate_size=1024, num_attention_heads=6, vocab_size=8000
)
LAYERS = (2, 3)
SHAPES = {  # method, configuration, what differs from the training's defaults; batches or networks that are large
    "mend-gpt2": ("mend", GPT2, {"batch_size": 16, "rank": 200}),
    "mend-gpt2-wide": ("mend", GPT2, {"batch_size": 1, "rank": 1920, "accumulate": 2}),
    "mend-llama": ("mend", LLAMA, {"batch_size": 16, "rank": 200, "accumulate": 2}),
    "serac-gpt2": ("serac", GPT2, {"batch_size": 8, "width": 320, "blocks": 4, "heads": 4}),
    "serac-llama": ("serac", LLAMA, {"batch_size": 2, "width": 512, "blocks": 3, "heads": 4, "accumulate": 2}),
}
TOKENS, ANSWER = 32, 4  # of a prompt with its answer


def training_of(shape: str) -> dict:
    """Two steps that keep the best network, so that all is there that a long training holds."""
    return {"accumulate": 1, **SHAPES[shape][2], "steps": 2, "validate_every": 1, "validation_share": 0.01}


def build_requests(count: int) -> list[EditRequest]:
    """Requests whose prompts and probes have `TOKENS` tokens, the last `ANSWER` of them the answer's."""
    requests = []
    for index in range(count):
        prompt, answer = " ".join(WORDS[index : index + TOKENS - ANSWER - 1]), " ".join(WORDS[-ANSWER:])
        probe = Probe(f"{prompt} {WORDS[index + 40]}", answer)
        requests.append(EditRequest(WORDS[index], "{} " + prompt, answer, locality=(probe,) * 2))
    return requests


def measure(shape: str) -> int:
    """Peak memory of this process while it trains, above what it takes before the model is built; bytes."""
    method, config, _ = SHAPES[shape]
    tokenizer, before = word_tokenizer(), peak()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    method_class = registered(method).load()
    training = configure(method, method_class.training_class, training_of(shape))
    training_module.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    with tempfile.TemporaryDirectory() as folder:
        files = {"out": Path(folder) / "editor.safetensors", "checkpoint": Path(folder) / "checkpoint.safetensors"}
        settings = configure(method, method_class.config_class, {"layers": LAYERS})
        requests = build_requests(training.batch_size + 1)
        method_class.train(model, tokenizer, settings, training, requests, **files, seed=0)
    return peak() - before


def announce(shape: str) -> int:
    method, config, _ = SHAPES[shape]
    return plan_training(config, method, LAYERS, training_of(shape), prompt_tokens=TOKENS).memory_bytes


def report(shape: str) -> None:
    announced = announce(shape)
    child = os.fork()  # a child counts its own peak
    if child == 0:
        measured = measure(shape)
        print(f"{shape}: announced {announced / 1e9:.3f} GB, measured {measured / 1e9:.3f} GB", end=" ")
        print(f"({measured / announced - 1:+.1%})", flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit(f"{shape}: the training failed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    for shape in parser.parse_args().shape or SHAPES:
        report(shape)
