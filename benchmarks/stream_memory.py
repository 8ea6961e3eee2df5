"""Peak memory of editing streams at small shapes (random weights, two target steps), and what `plan` announces.

python benchmarks/stream_memory.py                            all shapes, each in a process of its own: some minutes
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from covariance_memory import WORDS, peak, word_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig, PreTrainedConfig

from coachhook import EditRequest, Probe
from coachhook.architectures import ModelParts
from coachhook.covariance_file import Covariance, model_digest, write_covariance
from coachhook.preflight import plan_stream
from coachhook.stream import StreamConfig, run_stream

SIZE = {"bos_token_id": 0, "eos_token_id": 0}
GPT2 = GPT2Config(n_layer=6, n_embd=384, n_head=6, vocab_size=8000, **SIZE)
GPTJ = GPTJConfig(n_layer=6, n_embd=384, n_head=6, vocab_size=8000, rotary_dim=32, n_positions=1024, **SIZE)
LLAMA = LlamaConfig(
    num_hidden_layers=6, hidden_size=384, intermediate_size=1024, num_attention_heads=6, vocab_size=8000, **SIZE
)
LAYERS = (1, 2)
FEW = {"context_templates": 0}
SHAPES = {  # method, configuration, edits, batch size, what differs from the method's defaults
    "one-batch": ("coachhook", GPT2, 32, 32, {}),
    "one-batch-llama": ("coachhook", LLAMA, 32, 32, {}),
    "one-batch-gptj": ("coachhook", GPTJ, 32, 32, {}),
    "wide-vocabulary": ("memit", GPT2Config(n_layer=4, n_embd=256, n_head=4, vocab_size=50_000, **SIZE), 32, 32, {}),
    "many-keys": ("coachhook", GPT2, 600, 100, FEW),
    "leverage": ("coachhook-leverage", GPT2, 32, 32, {}),
    "leverage-many": ("coachhook-leverage", GPT2, 600, 100, FEW),
}
TOKENS, ANSWER = 32, 4  # of a prompt with its answer
BACKGROUND = 1024


def build_requests(count: int) -> list[EditRequest]:
    """Requests whose prompts and probes have `TOKENS` tokens, the last `ANSWER` of them the answer's."""
    requests = []
    for index in range(count):
        words = [WORDS[(index + offset) % len(WORDS)] for offset in range(TOKENS - ANSWER)]
        prompt, answer = " ".join(words[1:]), " ".join(WORDS[-ANSWER:])
        probes = (Probe(f"{words[3]} {prompt}", answer), Probe(f"{words[4]} {prompt}", answer))
        requests.append(
            EditRequest(words[0], "{} " + prompt, answer, paraphrases=("{} " + prompt + ",",), locality=probes)
        )
    return requests


def write_files(config: PreTrainedConfig, folder: Path) -> None:
    """A model with random weights, its tokenizer, and a covariance of random keys with a sample of them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    width = ModelParts(model).width(LAYERS[0])
    keys = {layer: torch.randn(2 * width, width) for layer in LAYERS}
    matrices = {layer: sample.T.double() @ sample.double() / len(sample) for layer, sample in keys.items()}
    background = {layer: sample[:BACKGROUND].clone() for layer, sample in keys.items()}
    covariance = Covariance(matrices, background, 2 * width, model_digest(model, LAYERS))
    write_covariance(covariance, folder / "covariance.safetensors")


def settings_of(shape: str) -> dict:
    return {"target_steps": 2, **SHAPES[shape][4]}


def measure(shape: str, folder: Path) -> int:
    """Peak memory of this process while it runs the stream, above what it takes before the model is there; bytes."""
    method, _, edits, batch_size, _ = SHAPES[shape]
    before = peak()
    sizes = {"edits": edits, "batch_size": batch_size, "evaluate_every": edits}
    config = StreamConfig(method=method, hyperparameters={"layers": list(LAYERS), **settings_of(shape)}, **sizes)
    paths = {"out_dir": folder / "out", "checkpoint_dir": folder / "checkpoint"}
    run_stream(config, build_requests(edits), folder, folder / "covariance.safetensors", device="cpu", **paths)
    return peak() - before


def announce(shape: str) -> dict[str, int]:
    """Bytes by what they are for."""
    method, config, edits, batch_size, _ = SHAPES[shape]
    sizes = {"edits": edits, "batch_size": batch_size, "prompt_tokens": TOKENS}
    return plan_stream(config, method, LAYERS, **sizes, hyperparameters=settings_of(shape)).parts


def in_child(action, *arguments) -> None:
    """Run it in a process of its own, which counts its own peak."""
    child = os.fork()
    if child == 0:
        action(*arguments)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("a stream failed")


def report(shape: str, folder: Path) -> None:
    announced, measured = sum(announce(shape).values()), measure(shape, folder)
    print(f"{shape}: announced {announced / 1e9:.3f} GB, measured {measured / 1e9:.3f} GB", end=" ")
    print(f"({measured / announced - 1:+.1%})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    for shape in parser.parse_args().shape or SHAPES:
        with tempfile.TemporaryDirectory() as directory:
            in_child(write_files, SHAPES[shape][1], Path(directory))
            in_child(report, shape, Path(directory))
