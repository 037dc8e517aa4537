"""Two sets of logits held against each other, and what counts as agreement.

Knows no model and no runtime. Errors of logits are in units of the spread (standard deviation) of the reference's logits.
"""

from dataclasses import dataclass

import numpy as np

# Where a runtime computes in f32 from the values in the file, only the order of sums differs.
EXACT_KL = 1e-4
EXACT_ERROR = 2e-3

# Where a runtime rounds activations: 8-bit integers with a scale per 32 to 256 of them, or 16-bit floats. The step of a block
# is amax/127, so its rounding error is amax/(127·√12), and amax of 32 to 256 normal numbers is 2.1 to 2.8 of their standard
# deviations: 0.5 to 0.6 % of noise in the input of each product. A token of the models here goes through 2 layers of 4
# products each, one after another, and the head: √9 · 0.6 % = 1.8 % of the logits' spread, if errors only add up and none
# is damped. bf16 (8 bits of mantissa, 0.11 % rms) rounds every result too, three to four times as many: below that.
# KL of a change δ of the logits is half the variance of δ: (0.018 · spread)² / 2, doubled for the worst of 80 tokens.
NOISE = 0.018
# The largest of 80 · 1,536 normal numbers is 4.6 standard deviations; head and embedding are seldom normal: 6.
SHIPPED_ERROR = 6 * NOISE


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


def compare(ids, reference, logits, prompt, greedy, exact):
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
    most, largest = (EXACT_KL, EXACT_ERROR) if exact else ((NOISE * spread) ** 2, SHIPPED_ERROR)
    # A choice between logits that are nearer than two errors is no choice.
    sure = margins(reference) > 2 * largest * spread
    wrote = ids[prompt:]
    agreed = next((at for at, (a, b) in enumerate(zip(wrote, greedy)) if a != b), len(wrote))
    problems = []
    if worst > most:
        problems.append(f"KL {worst:.1e} > {most:.1e}")
    if error > largest:
        problems.append(f"logits differ by {error:.1e} of their spread > {largest:.1e}")
    if (sure & ~same).any() or (exact and not same.all()):
        problems.append(f"top-1 differs at token {int(np.argmin(same))}")
    if agreed < len(wrote) and (exact or sure[prompt - 1 + agreed]):
        problems.append(f"greedy token {agreed}: {greedy[agreed]} instead of {wrote[agreed]}")
    return Agreement(worst, error, int(same.sum()), len(ids), agreed, len(wrote), problems)
