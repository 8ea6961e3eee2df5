"""Saved edits at GPT2-XL's shape: 1,000 edits in batches of 10, with random factors, through the real classes.

python benchmarks/saved_edits.py                      GPT2-XL, layers 13 to 17: 3 GB of memory, a minute
python benchmarks/saved_edits.py --method coachhook   the paper's gate, whose steps also hold their keys
python benchmarks/saved_edits.py --batch-size 1       the same edits one by one
python benchmarks/saved_edits.py --shape small        a shape that takes seconds
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from coachhook import Editor, EditRequest
from coachhook.base_identity import BaseModelIdentity
from coachhook.editors.base import Update
from coachhook.editors.coachhook import CoachHookConfig
from coachhook.hyperparameters import registered
from coachhook.journal import Step
from coachhook.saved_edits import write_edits

SHAPES = {  # configuration, edited layers; blocks above the last edited one would change nothing here
    "gpt2-xl": (GPT2Config(n_layer=18, n_embd=1600, n_head=25), (13, 14, 15, 16, 17)),
    "small": (GPT2Config(n_layer=3, n_embd=256, n_head=4), (1, 2)),
}
EDITS = 1000


def build_model(config: GPT2Config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    return model.eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"the": 0, "place": 1, "is": 2}, unk_token="the"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="the")


def random_step(number: int, width: int, config: CoachHookConfig, batch_size: int) -> Step:
    """A step as `config`'s gate has it: factors of each layer, with the batch's keys or its part of their root and, in
    the first, the sketch."""
    generator = torch.Generator().manual_seed(number)
    sizes = {"left": width, "right": 4 * width} | ({"keys": 4 * width} if config.gate == "paper" else {})
    tensors = {
        f"{name}.{layer}": torch.randn(rows, batch_size, generator=generator) * 0.01
        for layer in config.layers
        for name, rows in sizes.items()
    }
    if config.gate == "leverage" and number == 1:
        rows = min(config.sketch_size, 4 * width)
        for layer in config.layers:
            tensors[f"sketch.{layer}"] = torch.randn(rows, 4 * width, generator=generator).bfloat16()
    if config.gate == "leverage":
        for layer in config.layers:
            before = 0.01 * torch.randn(batch_size, (number - 1) * batch_size, generator=generator)
            tensors[f"root.{layer}"] = torch.cat([before, 2 * torch.eye(batch_size)], 1)
    told = {str(layer): 0.5 for layer in config.layers}
    names = [f"Subject {number} {i}" for i in range(batch_size)]
    requests = [EditRequest(name, "The place of {} is", "Paris", "London") for name in names]
    return Step.now(Update(tensors, {"alpha": told, "tau": told, "smallest_edited": told}), requests)


def save(folder: Path, model, method: str, layers: tuple[int, ...], batch_size: int) -> None:
    entry = registered(method)
    config = entry.load().config_class(layers=layers, **entry.preset)
    width = model.config.n_embd
    steps = (random_step(number, width, config, batch_size) for number in range(1, EDITS // batch_size + 1))
    write_edits(folder, method, config, BaseModelIdentity.of(model, layers), steps, build_tokenizer(), None)


def timed(what: str, action):
    started = time.perf_counter()
    result = action()
    print(f"{what:22s} {time.perf_counter() - started:6.2f} s", flush=True)
    return result


def bits(editor: Editor, layers: tuple[int, ...]):
    """ΔW, and what each layer adds to some keys."""
    found = []
    for layer in layers:
        hook = editor._method.hooks[layer]
        keys = torch.randn(1, 8, hook.dense().shape[1], generator=torch.Generator().manual_seed(0))
        found += [hook.dense().clone(), hook.gate.answer(hook.change, keys)[0]]
    return found


def measure(shape: str, method: str, batch_size: int, folder: Path) -> None:
    config, layers = SHAPES[shape]
    model, last = build_model(config), EDITS // batch_size
    timed("draw and save", lambda: save(folder, model, method, layers, batch_size))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{shape}, {method}: {EDITS} edits in {last} steps, {len(layers)} layers: {size / 1e6:.1f} MB")
    editor = timed("load", lambda: Editor.from_pretrained(folder, model))
    timed("first answer", lambda: editor.model(torch.ones(1, 8, dtype=torch.long)))
    middle = last // 2
    for step in (last - 1, middle, 1, 0):
        timed(f"roll back to {step}", lambda step=step: editor.rollback(step))
        if step == middle:
            found = bits(editor, layers)
    editor.close()
    editor = timed(f"load at step {middle}", lambda: Editor.from_pretrained(folder, model, step=middle))
    same = all(torch.equal(*pair) for pair in zip(found, bits(editor, layers), strict=True))
    print(f"rolled back to {middle} and loaded at {middle} have", "the same bits" if same else "OTHER BITS")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-xl")
    parser.add_argument("--method", choices=("coachhook-leverage", "coachhook"), default="coachhook-leverage")
    parser.add_argument("--batch-size", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(options.shape, options.method, options.batch_size, Path(directory))
