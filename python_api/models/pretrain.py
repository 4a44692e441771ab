"""Pre-training of a small model that stands for the foundation model a user would bring.

Decoders learn the next byte, encoders the masked ones. What comes out is cached by the hash of all
that went in: config, texts, steps, seed, device kind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from python_api.errors import InputError
from python_api.models.build import PRETRAIN_LIMIT, Progress, config_key, quiet
from python_api.models.tokenizer import byte_tokenizer

if TYPE_CHECKING:
    from python_api.config import ModelConfig

__all__ = ["Recipe", "cache_folder", "pretrained", "recipe"]

WINDOW = 128  # tokens per row
ROWS = 16
LR = 3e-3
# Changes whenever the procedure below would give other weights.
PROCEDURE = "windows-128x16 adamw-3e-3 cosine"


@dataclass(frozen=True)
class Recipe:
    """What a pre-trained model is made from; ``key`` names it in the cache."""

    texts: tuple[str, ...]
    steps: int
    seed: int
    key: str


def recipe(model: ModelConfig, config: Any, *, texts: Sequence[str], seed: int) -> Recipe:
    """Resolve ``model.pretrain`` to texts and steps.

    Raises:
        InputError: no texts to read, or ``"own"`` for a shared model.
    """
    plan = model.pretrain
    source = plan.text if plan is not None else None
    steps = plan.steps if plan is not None else 300
    if source is None:
        source = "builtin" if model.shared else "own"
        if _parameters(config) > PRETRAIN_LIMIT:
            source = "none"
    if source == "own" and model.shared:
        raise InputError(
            f'models.{model.shared}.pretrain.text: "own" is no text that all parties hold; '
            'expected "builtin", a file or "none"'
        )
    found = _texts(source, texts) if steps and source != "none" else ()
    if not found:
        steps = 0
    digest = hashlib.sha256()
    for part in (PROCEDURE, config_key(config), str(steps), str(seed), *found):
        digest.update(part.encode() + b"\0")
    return Recipe(tuple(found), steps, seed, digest.hexdigest())


def _texts(source: str, own: Sequence[str]) -> list[str]:
    if source == "own":
        found = list(own)
        if not any(found):
            raise InputError('model.pretrain.text: "own", but the party has no training texts')
        return found
    if source == "builtin":
        from python_api.data.builtin import builtin_task

        return [
            text
            for name in ("sentiment", "topic", "intent")
            for text in task_texts(builtin_task(name, seed=0).train)
        ]
    path = Path(source)
    if not path.is_file():
        raise InputError(f'model.pretrain.text: {source} is no file; or "own", "builtin", "none"')
    if path.suffix == ".txt":
        found = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    else:
        from python_api.data.loaders import read_rows

        found = []
        for row in read_rows(path):
            if "text" in row:
                found.append(row["text"])
            elif "question" in row and "answer" in row:
                found.append(f"{row['question']}\n{row['answer']}")
            else:
                raise InputError(
                    f"model.pretrain.text: {source} has neither a column text nor question and "
                    f"answer; found {' '.join(row)}"
                )
    if not found:
        raise InputError(f"model.pretrain.text: {source} is empty")
    return found


def task_texts(examples: Sequence[Any]) -> list[str]:
    """The texts of examples without their labels; for generation question and answer."""
    return [e.text if e.answer is None else f"{e.text}\n{e.answer}" for e in examples]


def cache_folder() -> Path:
    """``FEDKERNELS_CACHE``, or the user's cache folder."""
    if named := os.environ.get("FEDKERNELS_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fedkernels"


def pretrained(
    plan: Recipe,
    config: Any,
    *,
    encoder: bool,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
):
    """The model of ``plan`` on the CPU, from the cache or made now."""
    if not plan.steps:
        return _finished(_fresh(config, plan.seed, encoder=encoder), encoder=encoder)
    from filelock import FileLock

    kind = torch.device(device).type
    folder = cache_folder() / "models" / f"{plan.key[:40]}-{kind}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "config.json").is_file():
            model = _train(plan, config, encoder=encoder, device=device, progress=progress)
            made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
            try:
                with quiet():
                    model.save_pretrained(made)
                shutil.rmtree(folder, ignore_errors=True)
                made.rename(folder)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    with quiet():
        return _classes(encoder).from_pretrained(folder, use_safetensors=True, dtype=torch.float32)


def _classes(encoder: bool):
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModel if encoder else AutoModelForCausalLM


def _parameters(config: Any) -> int:
    from transformers import AutoModel

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModel.from_config(config).parameters())


def _fresh(config: Any, seed: int, *, encoder: bool):
    """A random model; for encoders with the masked-language head that pre-training needs."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    kind = AutoModelForMaskedLM if encoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.from_config(config, dtype=torch.float32)


def _finished(model, *, encoder: bool):
    """Decoders stay; of an encoder the bare model stays, with the pooler that loading expects."""
    if not encoder:
        return model.eval()
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bare = AutoModel.from_config(model.config, dtype=torch.float32)
    bare.load_state_dict(model.base_model.state_dict(), strict=False)
    return bare.eval()


def _train(plan: Recipe, config: Any, *, encoder: bool, device, progress: Progress | None):
    model = _fresh(config, plan.seed, encoder=encoder).to(device).train()
    stream, starts = _stream(plan.texts)
    window = min(WINDOW, config.max_position_embeddings)
    generator = torch.Generator().manual_seed(plan.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    warmup = max(1, plan.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / warmup)
            * 0.5
            * (1 + torch.cos(torch.tensor(torch.pi * step / plan.steps)).item())
        ),
    )
    reach = torch.arange(window)
    # Dropout of the families that have it must not move the caller's random state.
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(plan.seed)
        for step in range(plan.steps):
            rows = starts[torch.randint(len(starts), (ROWS,), generator=generator)]
            ids = stream[rows[:, None] + reach]
            inputs, targets = _masked(ids, generator) if encoder else (ids, ids)
            logits = model(input_ids=inputs.to(device)).logits.float()
            if not encoder:
                logits, targets = logits[:, :-1], targets[:, 1:]
            loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if progress is not None and ((step + 1) % 10 == 0 or step + 1 == plan.steps):
                progress(step + 1, plan.steps, float(loss.detach()))
    return _finished(model.cpu(), encoder=encoder)


def _stream(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """All texts as one row of tokens, and where each begins; long enough behind the last start."""
    tokenizer = byte_tokenizer()
    rows = tokenizer(list(texts)).input_ids
    end = tokenizer.eos_token_id
    stream: list[int] = []
    starts: list[int] = []
    for row in rows:
        # A text that is longer than a window also starts a window within itself.
        starts.extend(range(len(stream), len(stream) + len(row), WINDOW))
        stream.extend([*row, end])
    while len(stream) < starts[-1] + WINDOW:
        stream.extend(stream[: starts[-1] + WINDOW - len(stream)])
    return torch.tensor(stream), torch.tensor(starts)


def _masked(ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """BERT's masking: 15 % of the tokens; of these 80 % masked, 10 % random, 10 % as they are."""
    tokenizer = byte_tokenizer(encoder=True)
    draw = torch.rand(ids.shape, generator=generator)
    chosen = (draw < 0.15) & (ids > 4)
    inputs = ids.clone()
    inputs[chosen & (draw < 0.12)] = tokenizer.mask_token_id
    swap = chosen & (draw >= 0.12) & (draw < 0.135)
    inputs[swap] = torch.randint(5, 261, (int(swap.sum()),), generator=generator)
    return inputs, torch.where(chosen, ids, -100)
