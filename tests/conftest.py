"""Small real models, built from their configurations, and a tokenizer trained on the spot."""

import copy
import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing is looked up online
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: on models this small, threads only wait

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from coachhook import EditRequest, Probe
from coachhook.covariance import compute_covariance

# SLURM's jobs wait most of the time; meanwhile another process finishes the study that the tests after them look at.
FIRST = ("test_slurm.py", "test_provenance.py")


def pytest_collection_modifyitems(items):
    """Tests of the workflow come first: they take longest, and at the end another process would wait for them."""
    items.sort(key=lambda item: (item.path.parent.name == "tests", item.path.name not in FIRST))


def pytest_collection_finish():
    """What has been imported stays: the collector need not look through a million objects again and again."""
    gc.collect()
    gc.freeze()


TEXT = [
    "Ada Lovelace was born in London and wrote about the engine.",
    "Alan Turing was born in Paris and liked to run along the river.",
    "Grace Hopper worked in the city of Rome for many years, and found a moth.",
    "The capital of France is Paris. The capital of Italy is Rome.",
    "Where was Ada Lovelace born? London. Where does Grace Hopper live? Oslo.",
]

SIZE = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0}

CONFIGS = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(n_layer=5, n_embd=32, n_head=2, n_inner=48, n_positions=64, **SIZE)),
    "gptj": (
        GPTJForCausalLM,
        GPTJConfig(n_layer=5, n_embd=32, n_head=2, n_inner=48, n_positions=64, rotary_dim=8, **SIZE),
    ),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            num_hidden_layers=5,
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=2,
            max_position_embeddings=64,
            **SIZE,
        ),
    ),
}


@pytest.fixture(scope="session")
def tokenizer():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )


def build_model(family: str, seed: int = 0):
    """A random model of `family`, with weights large enough that its answers differ from prompt to prompt."""
    model_class, config = CONFIGS[family]
    torch.manual_seed(seed)
    model = model_class(copy.deepcopy(config))  # a test may change it
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.eval()


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return build_model(family)


LAYERS = (1, 2)


@pytest.fixture(scope="session")
def covariances(tokenizer):
    """C0 per family, from the texts above and random token sequences (so that it is positive definite)."""
    words = sorted({word for text in TEXT for word in text.split()})
    generator = torch.Generator().manual_seed(0)
    texts = TEXT + [
        " ".join(words[i] for i in torch.randint(len(words), (12,), generator=generator)) for _ in range(60)
    ]
    return {name: compute_covariance(build_model(name), tokenizer, texts, LAYERS, background=256) for name in CONFIGS}


@pytest.fixture(scope="session")
def requests():
    """Six requests of different lengths, with paraphrases and probes of both kinds."""
    rome = Probe("The capital of Italy is", "Rome")
    turing = Probe("Ada Lovelace wrote about the", "engine", "same_subject")
    people = [
        ("Ada Lovelace", "{} was born in", "Paris"),
        ("Alan Turing", "{} liked to run along the", "city of Rome"),
        ("Grace Hopper", "For many years {} worked in the city of", "Oslo"),
        ("France", "The capital of {} is", "London"),
        ("Italy", "The capital of {} is", "Oslo"),
        ("Hopper", "Where does {} live?", "Paris"),
    ]
    return [
        EditRequest(s, p, t, paraphrases=("Where was {} born?",), locality=(rome, turing), case_id=i)
        for i, (s, p, t) in enumerate(people)
    ]


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """A folder of tasks for lm-eval; what datasets keeps of their data goes with it."""
    import datasets
    from ability_tasks import write_tasks

    folder, before = tmp_path_factory.mktemp("tasks"), datasets.config.HF_DATASETS_CACHE
    write_tasks(folder)
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield folder
    datasets.config.HF_DATASETS_CACHE = before
