"""Two published texts, one that repeats itself and one that does not, and a tiny model that has learnt both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.engine.report import say

# "The House That Jack Built", nursery rhyme, in print since 1755.
_RHYME = (
    "the house that Jack built",
    "the malt that lay in",
    "the rat that ate",
    "the cat that killed",
    "the dog that worried",
    "the cow with the crumpled horn that tossed",
    "the maiden all forlorn that milked",
    "the man all tattered and torn that kissed",
    "the priest all shaven and shorn that married",
    "the cock that crowed in the morn that woke",
)
REPETITIVE = "".join(f"This is {' '.join(reversed(_RHYME[: verse + 1]))}.\n" for verse in range(len(_RHYME)))
# Lewis Carroll, "Alice's Adventures in Wonderland", 1865, its beginning.
OTHER = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or "
    "twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, 'and "
    "what is the use of a book,' thought Alice 'without pictures or conversations?' So she was considering in her own "
    "mind (as well as she could, for the hot day made her feel very sleepy and stupid), whether the pleasure of making "
    "a daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly a White Rabbit with "
    "pink eyes ran close by her.\n"
)
_CHANGES: dict[str, Any] = {"num_hidden_layers": 4, "max_position_embeddings": 4096, "tie_word_embeddings": True}
_BATCH = 4
_WINDOW = 192
_RATE = 2e-3
_GOOD_LOSS = 0.05


def learnt_model(folder: Path, *, steps: int) -> Path:
    """Train a tiny model until it knows both texts, or for so many steps."""
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import numpy as np

    from shardhub.text.tokenizer import Tokenizer
    from tests import tiny

    config = {**tiny.config("llama"), **_CHANGES}
    model = tiny.build(config)
    tiny.save(model, config, folder)
    tiny.save_tokenizer(folder)
    tokenizer = Tokenizer(folder)
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in (REPETITIVE, OTHER)]
    rng = np.random.default_rng(0)
    optimizer = optim.Adam(learning_rate=optim.cosine_decay(_RATE, steps, _RATE / 10))

    def loss_of(model: Any, ids: Any) -> Any:
        return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="mean")

    step_of = nn.value_and_grad(model, loss_of)
    model.train()
    recent = float("inf")
    for step in range(steps):
        rows = []
        for row in range(_BATCH):
            ids = texts[row % 2]
            # Often from the beginning: that is what is asked of it.
            at = 0 if rng.random() < 0.3 else int(rng.integers(0, len(ids) - _WINDOW))
            rows.append(ids[at : at + _WINDOW + 1])
        width = min(map(len, rows))
        loss, gradients = step_of(model, mx.array([row[:width] for row in rows]))
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        recent = loss.item() if recent == float("inf") else 0.9 * recent + 0.1 * loss.item()
        if step % 100 == 99:
            say(f"training a tiny model: step {step + 1}, loss {recent:.3f}")
        if recent < _GOOD_LOSS:
            break
    model.eval()
    tiny.save(model, config, folder)
    return folder
