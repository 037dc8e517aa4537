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
# token, so the rounding isn't coarser. Both are noise, and the worst of 48 tokens is compared: three times the variance, and
# so 1.7 times the error, is within chance.
CHANCE = 3


@dataclass
class Bounds:
    """The most that KL and error may be; `exact` also wants every choice to be the same."""

    kl: float
    error: float
    exact: bool


EXACT = Bounds(EXACT_KL, EXACT_ERROR, True)
# Where both sides round activations alike, a value between two codes may still go either way when the last bit of a sum differs, once in
# some ten thousand; all that follows it then differs by rounding noise. So of BEGINNINGS texts of ALIKE tokens one at least has to be exact;
# a wrong code or scale spoils them all.
BEGINNINGS, ALIKE = 4, 2


def noise(reference, rounded, factor):
    """The bounds for a runtime whose rounding has `factor` times the variance of the reference's, from the reference's own logits
    with rounded activations and without."""
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


def failed(ids, prompt, problem):
    """Nothing could be compared."""
    return Agreement(np.inf, np.inf, 0, len(ids), 0, len(ids) - prompt, [problem])


def nearest(pairs):
    """What is wrong with the best of some texts, given as the reference's logits and the other's: none, if order of sums explains it."""
    error = min(float(np.abs(reference - logits).max() / reference.std()) for reference, logits in pairs)
    return f"the logits of no short text are nearer than {error:.1e} of their spread > {EXACT_ERROR:.1e}" if error > EXACT_ERROR else None


def compare(ids, reference, logits, prompt, bounds):
    """`ids` were read, `reference` and `logits` [ids, vocab] are what was predicted after each; the ids from `prompt` on are the
    reference's greedy choice. After the same past, whoever would choose each of them writes the same text."""
    if logits.shape[0] != len(ids) or logits.shape[1] < reference.shape[1]:
        return failed(ids, prompt, f"logits {logits.shape}, want {reference.shape}")
    if not np.isfinite(logits).all():
        return failed(ids, prompt, "logits that are not finite")
    # Rows that a target adds to fill blocks must never win; greedy tokens are compared with them.
    logits = logits[:, : reference.shape[1]]
    spread = reference.std()
    worst = float(kl(reference, logits).max())
    error = float(np.abs(reference - logits).max() / spread)
    same = reference.argmax(-1) == logits.argmax(-1)
    # Between logits that are nearer than two errors either choice is right.
    sure = (margins(reference) > 2 * bounds.error * spread) | bounds.exact
    wrote, chosen = np.array(ids[prompt:]), logits.argmax(-1)[prompt - 1 : -1]
    differs = (wrote != chosen) & sure[prompt - 1 : -1]
    problems = []
    if worst > bounds.kl:
        problems.append(f"KL {worst:.1e} > {bounds.kl:.1e}")
    if error > bounds.error:
        problems.append(f"logits differ by {error:.1e} of their spread > {bounds.error:.1e}")
    if (sure & ~same).any():
        problems.append(f"top-1 differs at token {int(np.argmax(sure & ~same))}")
    if differs.any():
        at = int(np.argmax(differs))
        problems.append(f"greedy token {at}: {chosen[at]} instead of {wrote[at]}")
    return Agreement(worst, error, int(same.sum()), len(ids), int((wrote == chosen).sum()), len(wrote), problems)
