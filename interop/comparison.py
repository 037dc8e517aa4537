"""Two sets of logits held against each other, and what counts as agreement.

Knows no model and no runtime. Errors of logits are in units of the spread (standard deviation) of the reference's logits.
"""

from dataclasses import dataclass

import numpy as np

# Where a runtime computes in f32 from the values in the file, only the order of sums differs: errors of 1e-5 were measured.
EXACT_KL = 1e-4
EXACT_ERROR = 1e-4

# Where a runtime rounds activations, to 8-bit integers with a scale per 32 to 256 of them or to 16-bit floats, it may be as far off
# as qat itself is with 8-bit activations and one scale per token: the scale of a block is never larger than that of its whole
# token, so the rounding isn't coarser. Both are noise, and the worst of 80 tokens is compared: three times the variance, and
# so 1.7 times the error, is within chance.
CHANCE = 3


@dataclass
class Bounds:
    """The most that KL and error may be; `exact` also wants every choice to be the same."""

    kl: float
    error: float
    exact: bool


EXACT = Bounds(EXACT_KL, EXACT_ERROR, True)


def noise(reference, rounded, factor):
    """The bounds for a runtime whose rounding has `factor` times the variance of the reference's, from the reference's own logits
    with rounded activations."""
    error = np.abs(reference - rounded).max() / reference.std()
    more = CHANCE * factor
    return Bounds(more * float(kl(reference, rounded).max()), more**0.5 * float(error), False)


@dataclass
class Agreement:
    """How far a runtime is from the reference over all tokens."""

    kl: float
    error: float
    top1: int
    tokens: int
    greedy: int
    written: int
    problems: list

    @property
    def holds(self):
        return not self.problems


def log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl(reference, other):
    """KL(reference ‖ other) of each row."""
    p, q = log_softmax(reference), log_softmax(other)
    return (np.exp(p) * (p - q)).sum(-1)


def margins(logits):
    """How far the highest logit of each row is above the second."""
    top = np.partition(logits, -2, axis=-1)
    return top[:, -1] - top[:, -2]


def compare(ids, reference, logits, prompt, greedy, bounds):
    """`ids` were read, `reference` and `logits` [ids, vocab] are what was predicted; of the ids those from `prompt` on are the
    reference's greedy choice, `greedy` is the runtime's."""
    if logits.shape[0] != len(ids) or logits.shape[1] < reference.shape[1]:
        problem = f"logits {logits.shape}, want {reference.shape}"
        return Agreement(np.inf, np.inf, 0, len(ids), 0, len(greedy), [problem])
    if not np.isfinite(logits).all():
        return Agreement(np.inf, np.inf, 0, len(ids), 0, len(greedy), ["logits that are not finite"])
    # Rows that a target adds to fill blocks must never win; greedy tokens are compared with them.
    logits = logits[:, : reference.shape[1]]
    spread = reference.std()
    worst = float(kl(reference, logits).max())
    error = float(np.abs(reference - logits).max() / spread)
    same = reference.argmax(-1) == logits.argmax(-1)
    # Between logits that are nearer than two errors either choice is right.
    sure = (margins(reference) > 2 * bounds.error * spread) | bounds.exact
    wrote = ids[prompt:]
    agreed = next((at for at, (a, b) in enumerate(zip(wrote, greedy)) if a != b), len(wrote))
    problems = []
    if worst > bounds.kl:
        problems.append(f"KL {worst:.1e} > {bounds.kl:.1e}")
    if error > bounds.error:
        problems.append(f"logits differ by {error:.1e} of their spread > {bounds.error:.1e}")
    if (sure & ~same).any():
        problems.append(f"top-1 differs at token {int(np.argmax(sure & ~same))}")
    if agreed < len(wrote) and sure[prompt - 1 + agreed]:
        problems.append(f"greedy token {agreed}: {greedy[agreed]} instead of {wrote[agreed]}")
    return Agreement(worst, error, int(same.sum()), len(ids), agreed, len(wrote), problems)
