"""Saved edits at GPT2-XL's shape: 1,000 edits in batches of 10, with random factors, through the real classes.

python benchmarks/saved_edits.py                  GPT2-XL, layers 13 to 17: 3 GB of memory, a minute
python benchmarks/saved_edits.py --shape small    a shape that takes seconds
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
from coachhook.journal import Step
from coachhook.saved_edits import write_edits

SHAPES = {  # configuration, edited layers; blocks above the last edited one would change nothing here
    "gpt2-xl": (GPT2Config(n_layer=18, n_embd=1600, n_head=25), (13, 14, 15, 16, 17)),
    "small": (GPT2Config(n_layer=3, n_embd=256, n_head=4), (1, 2)),
}
EDITS, BATCH = 1000, 10


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


def random_step(number: int, config: GPT2Config, layers: tuple[int, ...]) -> Step:
    """A step of CoachHooK's: residuals, gain and keys of each layer, as float32."""
    generator = torch.Generator().manual_seed(number)
    width = config.n_embd
    tensors = {
        f"{name}.{layer}": torch.randn(rows, BATCH, generator=generator) * 0.01
        for layer in layers
        for name, rows in (("left", width), ("right", 4 * width), ("keys", 4 * width))
    }
    requests = [EditRequest(f"Subject {number} {i}", "The place of {} is", "Paris", "London") for i in range(BATCH)]
    return Step.now(Update(tensors, {"alpha": {str(layer): 2.0 for layer in layers}}), requests)


def save(folder: Path, model, layers: tuple[int, ...]) -> None:
    steps = (random_step(number, model.config, layers) for number in range(1, EDITS // BATCH + 1))
    identity = BaseModelIdentity.of(model, layers)
    write_edits(folder, "coachhook", CoachHookConfig(layers=layers), identity, steps, build_tokenizer(), None)


def timed(what: str, action):
    started = time.perf_counter()
    result = action()
    print(f"{what:22s} {time.perf_counter() - started:6.2f} s", flush=True)
    return result


def bits(editor: Editor, layers: tuple[int, ...]):
    return [editor._method.hooks[layer].dense().clone() for layer in layers]


def measure(shape: str, folder: Path) -> None:
    config, layers = SHAPES[shape]
    model = build_model(config)
    timed("draw and save", lambda: save(folder, model, layers))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{shape}: {EDITS} edits in {EDITS // BATCH} steps, {len(layers)} layers: {size / 1e6:.1f} MB")
    editor = timed("load", lambda: Editor.from_pretrained(folder, model))
    for step in (99, 75, 50, 1, 0):
        timed(f"roll back to {step}", lambda step=step: editor.rollback(step))
        if step == 50:
            middle = bits(editor, layers)
    editor.close()
    editor = timed("load at step 50", lambda: Editor.from_pretrained(folder, model, step=50))
    same = all(torch.equal(*pair) for pair in zip(middle, bits(editor, layers), strict=True))
    print("rolled back to 50 and loaded at 50 have", "the same bits" if same else "OTHER BITS")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-xl")
    with tempfile.TemporaryDirectory() as directory:
        measure(parser.parse_args().shape, Path(directory))
