"""Training an offline base model that recalls given facts at the subject's last token, in early layers.

A byte-level BPE tokenizer and a small GPT-2 are trained on the facts (see `interchange`) and written as an
ordinary Hugging Face directory, with `training.json` (what was reached) and `text.txt` (what covariances are
computed on).
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from coachhook.errors import CoachHookError
from coachhook.interchange import BatchSampler, TokenizedFacts, interchange_loss
from coachhook.recall import RecallReport, measure_recall
from coachhook.whole_files import whole_folder
from coachhook.world import Fact

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
_SECONDS_BETWEEN_LOG_LINES = 5.0


class RecallError(CoachHookError, RuntimeError):
    """The trained model does not recall its facts well enough to be worth editing."""


@dataclass(frozen=True)
class TrainingConfig:
    """Sizes and rates."""

    vocabulary: int = 1500
    context_length: int = 128
    width: int = 128
    layers: int = 5
    heads: int = 4
    mlp_width: int = 1024
    last_edited_layer: int = 2
    """The layer whose output is interchanged: the last one that editing will write to."""
    steps: int = 1400
    donors: int = 48
    """Donor rows per step; there are as many swapped rows."""
    lines_per_step: int = 32
    prefix_share: float = 0.25
    """Share of fact rows with other text in front of them."""
    prefix_tokens: tuple[int, int] = (2, 12)
    learning_rate: float = 3e-3
    warmup_share: float = 0.15
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    text_weight: float = 0.2
    """Loss weight of a fact row's tokens that are no answer; an answer's tokens weigh 1."""
    line_weight: float = 1.0
    """Loss weight of a line's tokens: the world's profiles are mostly answers."""
    bf16: bool = True
    """bf16 autocast where the CPU has it (a third faster)."""
    minimum_recall: float = 0.99


@dataclass(frozen=True)
class TrainingReport:
    """What training reached: also written as training.json."""

    config: TrainingConfig
    seed: int
    parameters: int
    seconds: float
    recall: RecallReport
    loss_log: list[dict[str, float]] = field(repr=False)
    """Mean losses since the previous line: step, loss, donor_loss, interchange_loss."""


def train_base_model(
    facts: Sequence[Fact],
    lines: Sequence[str],
    config: TrainingConfig,
    out_dir: str | os.PathLike[str],
    *,
    seed: int,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingReport:
    """Train a model that recalls `facts` and write it to `out_dir`; same seed and threads, same weights.

    `lines` is further text; `progress` is called with (steps done, steps in all) at every log line. Raises
    RecallError where less than `config.minimum_recall` of all facts × templates are recalled, and ValueError for
    settings that do not fit; `out_dir` is then left as it was.
    """
    if not 0 <= config.last_edited_layer < config.layers - 1:
        raise ValueError(
            f"last_edited_layer is {config.last_edited_layer}: choose 0 to {config.layers - 2}, "
            f"as the model has {config.layers} layers"
        )
    rng = random.Random(seed)
    documents = training_text(facts, lines, rng)
    tokenizer = train_tokenizer(documents, config)
    with _limited_threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(_gpt2_config(tokenizer, config))
        model.set_attn_implementation("eager")  # on short rows 2.5 times as fast as fused attention (CPU, bf16)
        started = time.monotonic()
        loss_log = _train(model, tokenizer, facts, lines, config, rng, progress)
        recall = measure_recall(model, tokenizer, facts, rng=rng)
    seconds, parameters = round(time.monotonic() - started, 1), sum(p.numel() for p in model.parameters())
    report = TrainingReport(config, seed, parameters, seconds, recall, loss_log)
    _check_recall(recall, config)
    _write(model, tokenizer, documents, report, Path(out_dir))
    return report


def _check_recall(recall: RecallReport, config: TrainingConfig) -> None:
    logger.info("recall %.2f %%, behind prefixes %.2f %%", 100 * recall.overall, 100 * recall.prefixed)
    if recall.overall < config.minimum_recall:
        raise RecallError(
            f"the model recalls {100 * recall.overall:.2f} % of {recall.prompts} prompts, under "
            f"{100 * config.minimum_recall:g} % (lowest: {recall.lowest()}); "
            "raise TrainingConfig.steps or mlp_width"
        )


def training_text(facts: Sequence[Fact], lines: Sequence[str], rng: random.Random) -> list[str]:
    """Every fact in every template, half of them behind another one, and the lines: one document each."""
    sentences = [
        f"{template.replace('{}', fact.subject)} {fact.answer}." for fact in facts for template in fact.templates
    ]
    documents = [f"{rng.choice(sentences)} {sentence}" if rng.random() < 0.5 else sentence for sentence in sentences]
    documents = [" ".join(document.split()) for document in (*documents, *lines)]
    rng.shuffle(documents)
    return documents


def train_tokenizer(documents: Sequence[str], config: TrainingConfig) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `config.vocabulary` tokens, trained on the documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=config.context_length,
        clean_up_tokenization_spaces=False,
    )


def _gpt2_config(tokenizer: PreTrainedTokenizerFast, config: TrainingConfig) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=config.context_length,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        n_inner=config.mlp_width,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own activation, fused: wide MLPs train 1.7 times as fast
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _train(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    facts: Sequence[Fact],
    lines: Sequence[str],
    config: TrainingConfig,
    rng: random.Random,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, float]]:
    sampler = _sampler(tokenizer, facts, lines, config, rng)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=config.warmup_share
    )
    bf16 = config.bf16 and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    loss_log, recent, logged = [], [], time.monotonic()
    model.train()
    for step in range(1, config.steps + 1):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss, donor_loss, swapped_loss = interchange_loss(model, sampler.draw(), config.last_edited_layer)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
        schedule.step()
        recent.append((loss.item(), donor_loss.item(), swapped_loss.item()))
        if step == config.steps or time.monotonic() - logged > _SECONDS_BETWEEN_LOG_LINES:
            means = [round(sum(column) / len(recent), 4) for column in zip(*recent, strict=True)]
            loss_log.append(dict(zip(("step", "loss", "donor_loss", "interchange_loss"), (step, *means), strict=True)))
            logger.info("step %d of %d: loss %.3f, answers %.3f, interchanged %.3f", step, config.steps, *means)
            recent, logged = [], time.monotonic()
            if progress is not None:
                progress(step, config.steps)
    model.eval()
    return loss_log


def _sampler(
    tokenizer: PreTrainedTokenizerFast,
    facts: Sequence[Fact],
    lines: Sequence[str],
    config: TrainingConfig,
    rng: random.Random,
) -> BatchSampler:
    tokenized = TokenizedFacts.tokenize(tokenizer, facts)
    longest = max(len(p.inner.ids) + len(tokenized.answers[p.fact]) for p in tokenized.prompts)
    if longest + config.prefix_tokens[1] + 2 > config.context_length:
        raise ValueError(
            f"the longest fact has {longest} tokens and no room for a prefix: raise context_length "
            f"(now {config.context_length}) to {longest + config.prefix_tokens[1] + 2} or more"
        )
    room = config.context_length - 2
    return BatchSampler(
        tokenized,
        [ids[:room] for ids in tokenizer(list(lines))["input_ids"]] if lines else [],
        donors=config.donors,
        lines_per_step=config.lines_per_step,
        prefix_share=config.prefix_share,
        prefix_tokens=config.prefix_tokens,
        text_weight=config.text_weight,
        line_weight=config.line_weight,
        end_id=tokenizer.eos_token_id,
        stop_id=tokenizer(".")["input_ids"][0],
        rng=rng,
    )


@contextmanager
def _limited_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    report: TrainingReport,
    out_dir: Path,
) -> None:
    """Write everything beside `out_dir`, then move it there file by file, training.json last."""
    with whole_folder(out_dir, last="training.json") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "text.txt").write_text("\n".join(documents) + "\n", encoding="utf-8")
        (folder / "training.json").write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
