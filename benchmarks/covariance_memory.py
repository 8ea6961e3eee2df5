"""Peak memory of the covariance job at a model's real shape (random weights, few tokens), and what `plan` announces.

python benchmarks/covariance_memory.py                        GPT2-XL, layers 13 to 17: 11 GB of memory, minutes
python benchmarks/covariance_memory.py --shape small          a shape that takes seconds
"""

import argparse
import re
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig, PreTrainedTokenizerFast

from coachhook import compute_covariance
from coachhook.preflight import plan_covariance

WORDS = [f"w{index}" for index in range(1000)]
LLAMA = {"num_hidden_layers": 4, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
SHAPES = {  # configuration, edited layers, tokens, tokens of a batch
    "gpt2-xl": (GPT2Config(n_layer=48, n_embd=1600, n_head=25), (13, 14, 15, 16, 17), 12_288, 8192),
    "small": (GPT2Config(n_layer=5, n_embd=768, n_head=12), (2, 3), 4096, 2048),
    # Its attention writes its scores out.
    "small-gptj": (GPTJConfig(n_layer=4, n_embd=512, n_head=8, rotary_dim=32, n_positions=1024), (1, 2), 8192, 4096),
    "small-llama": (LlamaConfig(**LLAMA, vocab_size=32_000, max_position_embeddings=1024), (1, 2), 8192, 4096),
}


def peak() -> int:
    """High-water mark of this process's memory in bytes (Linux; `ru_maxrss` would count its parent's too)."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that makes one token of each word."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=WORDS[0])


def measure(shape: str) -> int:
    """Peak memory of a process that computes the covariance, above what it takes before the model is built; bytes."""
    config, layers, tokens, batch_tokens = SHAPES[shape]
    tokenizer = word_tokenizer()
    text = " ".join(WORDS * 2)  # longer than the context
    before = peak()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "covariance.safetensors"
        sizes = {"max_tokens": tokens, "batch_tokens": batch_tokens, "checkpoint_seconds": 0.0}
        compute_covariance(model, tokenizer, [text] * tokens, layers, out, **sizes)
    return peak() - before


def announce(shape: str) -> int:
    config, layers, tokens, batch_tokens = SHAPES[shape]
    return plan_covariance(config, layers, max_tokens=tokens, batch_tokens=batch_tokens).memory_bytes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-xl")
    shape = parser.parse_args().shape
    announced = announce(shape)
    measured = measure(shape)
    print(f"{shape}: announced {announced / 1e9:.3f} GB, measured {measured / 1e9:.3f} GB", end=" ")
    print(f"({measured / announced - 1:+.1%})")
