"""Size of a saved directory, and seconds to save, load and roll back, after many edits at a model's real shape.

python benchmarks/saved_edits.py                   GPT2-XL's widths, 5 edited layers, 1,000 edits in batches of 10
python benchmarks/saved_edits.py --batch-size 1    the same edits one by one

Only the edited blocks are built, with random weights; the steps are random numbers of the leverage gate's shapes: what
they hold changes neither size nor time.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from coachhook import Editor, EditRequest
from coachhook.editors.base import Update

WIDTH, KEYS, LAYERS = 1600, 6400, (0, 1, 2, 3, 4)


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(1000)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")


def step(number: int, batch_size: int, sketch_size: int, generator: torch.Generator) -> Update:
    tensors = {}
    for layer in LAYERS:
        tensors[f"left.{layer}"] = torch.randn(WIDTH, batch_size, generator=generator)
        tensors[f"right.{layer}"] = torch.randn(KEYS, batch_size, generator=generator)
        if number == 0:
            tensors[f"sketch.{layer}"] = torch.randn(sketch_size, KEYS, generator=generator).bfloat16()
    told = {str(layer): 0.5 for layer in LAYERS}
    return Update(tensors, {"tau": told, "smallest_edited": told})


def timed(what: str, action):
    started = time.perf_counter()
    result = action()
    print(f"{what}: {time.perf_counter() - started:.1f} s")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=10)
    options = parser.parse_args()
    model = GPT2LMHeadModel(GPT2Config(n_layer=len(LAYERS), n_embd=WIDTH, n_head=25, vocab_size=1000))
    editor = Editor.__new__(Editor)  # as one that was loaded: without the covariance it replays and answers
    editor._open(model, tokenizer(), "coachhook-leverage", None, None, {"layers": LAYERS})
    generator = torch.Generator().manual_seed(0)
    request = EditRequest("w1", "{} w2 w3", "w4", paraphrases=("w5 {} w6",))
    for number in range(options.edits // options.batch_size):
        update = step(number, options.batch_size, editor.config.sketch_size, generator)
        editor.replay(update, [request] * options.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        timed("save", lambda: editor.save_pretrained(folder))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"size after {options.edits} edits in {editor.step} steps: {size / 1e6:.0f} MB")
        editor.close()
        loaded = timed("load (model given)", lambda: Editor.from_pretrained(folder, model))
        timed("first answer", lambda: loaded.model(torch.ones(1, 8, dtype=torch.long)))
        timed("roll back to the middle", lambda: loaded.rollback(loaded.step // 2))
