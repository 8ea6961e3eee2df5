"""Saved edits of every release, and the tiny base model under them, whose weights are written out by a formula.

python tests/saved_artefacts.py [METHOD ...]     writes those of this version that tests/artefacts/<version>/ lacks

Before its release a method's own may be deleted and written anew; after it they stay as they are.
"""

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import coachhook
from coachhook import Editor, EditRequest, Probe
from coachhook.editors import METHODS
from coachhook.editors.base import TrainedMethod

ARTEFACTS = Path(__file__).parent / "artefacts"
TEXT = "Ada Alan Grace was born in lives the city of Paris Rome Oslo London . river runs along"
WORDS = ["<end>", *TEXT.split()]
LAYERS = (1, 2)
WIDTH, MLP = 8, 12
PROMPTS = ("Ada was born in", "Alan lives in the city of", "Grace lives in", "the river runs along the city of")
BATCHES = (
    [EditRequest("Ada", "{} was born in", "Paris", locality=[Probe("Alan was born in", "Rome")], case_id="a")],
    [EditRequest("Alan", "{} lives in the city of", "Rome"), EditRequest("Grace", "{} lives in", "Oslo", "London")],
)
QUICK = {
    "layers": LAYERS,
    "covariance_weight": 2.0,
    "alpha": 1.0,
    "target_steps": 2,
    "steps": 2,
    "save_every": 2,
    "merge_every": 2,
    "learning_rate": 0.02,
    "context_templates": ("the river . ",),
    "unrelated_texts": ("the river runs along .",),
    "nullspace_threshold": 1.5,
    "threshold": 0.01,
    "false_positive_rate": None,  # matrices come without a sample of background keys
}
TRAINING = {
    "steps": 40,
    "batch_size": 2,
    "accumulate": 1,
    "learning_rate": 0.01,
    "validation_share": 0.4,
    "validate_every": 20,
    "rank": 4,
    "edit_learning_rate": 0.1,
    "width": 16,
    "blocks": 1,
    "heads": 2,
    "embedding_width": 8,
}


def base_model():
    """GPT-2 whose weights are multiples of 1/64: the same bits on every machine and with every version of torch."""
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=32,
        n_embd=WIDTH,
        n_layer=4,
        n_head=2,
        n_inner=MLP,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for place, weight in enumerate(model.parameters(), 1):
            if weight.ndim > 1:
                numbers = torch.arange(weight.numel()) * 7919 * place % 127 - 63
                weight.copy_(numbers.view_as(weight) / 64)
    return model


def word_tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="."))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", bos_token="<end>", pad_token="<end>")


def covariance():
    """C0 with eigenvalues from 1 to 2."""
    return {layer: torch.diag(torch.linspace(1, 2, MLP, dtype=torch.float64)) for layer in LAYERS}


@torch.no_grad()
def outputs(model, tokenizer):
    """Logits behind each of the prompts, one at a time."""
    return torch.stack([model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1] for prompt in PROMPTS])


def trained_editor(method_class, config, folder):
    """A tiny editor, trained for a moment on the requests themselves; None for methods that have none."""
    if not issubclass(method_class, TrainedMethod):
        return None
    known = method_class.training_class.model_fields
    training = method_class.training_class(**{name: value for name, value in TRAINING.items() if name in known})
    requests = [request for batch in BATCHES for request in batch]
    files = {"out": folder / "trained.safetensors", "checkpoint": folder / "checkpoint.safetensors"}
    model, tokenizer = base_model(), word_tokenizer()
    method_class.train(model, tokenizer, method_class.config_class(**config), training, requests, **files, seed=0)
    return files["out"]


def open_editor(method, folder):
    entry = METHODS[method]
    fields = entry.load().config_class.model_fields
    options = {name: value for name, value in QUICK.items() if name in fields}
    metadata = fields["layers"].metadata
    if any(getattr(limit, "max_length", None) == 1 for limit in metadata):
        options["layers"] = LAYERS[:1]
    given = covariance() if entry.load().needs_covariance else None
    trained = trained_editor(entry.load(), options, folder)
    return Editor(base_model(), word_tokenizer(), method, given, trained_editor=trained, **options)


def write(method, directory):
    """The directory of saved edits, and beside it what the model answers after each step."""
    with tempfile.TemporaryDirectory() as folder:
        _write(open_editor(method, Path(folder)), method, directory)


def _write(editor, method, directory):
    answers = {"0": outputs(editor.model, editor.tokenizer)}
    for step, batch in enumerate(BATCHES, 1):
        editor.edit(batch)
        editor.record(editor.evaluate(batch))
        answers[str(step)] = outputs(editor.model, editor.tokenizer)
    editor.save_pretrained(directory / method)
    save_file(answers, directory / f"{method}.answers.safetensors")


def expected(directory, method):
    return {int(step): logits for step, logits in load_file(directory / f"{method}.answers.safetensors").items()}


if __name__ == "__main__":
    target = ARTEFACTS / coachhook.__version__
    for name in sys.argv[1:] or METHODS:
        if not (target / name).exists():
            write(name, target)
            print("wrote", target / name)
