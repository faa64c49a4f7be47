"""
How deep the next cycle drafts: no deeper than it pays, judged by how far the cycles before were followed.

A drafted level is followed with some probability a. A cycle of d levels emits 1 + a + ... + a^d tokens on average and
costs 1 + c d, where c is the cost of one more level (`draft_level_cost`). The depth with most tokens for its cost is
drafted. a is estimated for each row from its own cycles, old ones counting less and less; all rows of a batch draft to
the same depth.

Few depths are enough, each half of the one before, so that a compiled cycle needs few graphs::

    draft_tree_depth 8: 8, 4, 2, 1      6: 6, 3, 2, 1      5: 5, 3, 2, 1

Nothing has to be asked of the device: the host knows what was emitted. The depth decides how soon tokens come, never
which. (Depth by the draft's confidence, arXiv 2409.00142, asks the device while it drafts.)

Next: `candidate_generator.py`.
"""

import math


# By simulation, see docs/evaluation.md.
PRIOR, WEIGHT = 0.6, 2.0  # the rate of an answer that begins, and how many levels that counts
DECAY = 0.8  # what a cycle counts one cycle later


class AdaptiveDepth:
    """
    Chooses a depth for each cycle.

    Args:
        most (`int`): levels of the deepest tree.
        level_cost (`float`): of one more level, in cycles without any level.
        num_rows (`int`): rows of the batch.
    """

    def __init__(self, most: int, level_cost: float, num_rows: int):
        self.level_cost = level_cost
        self.depths = [most]
        while self.depths[-1] > 1:
            self.depths.append(math.ceil(self.depths[-1] / 2))
        self.followed, self.tried = [0.0] * num_rows, [0.0] * num_rows  # levels
        self.has_ended = [False] * num_rows  # where rows that have ended stay in the batch

    def choose(self) -> int:
        """The depth of the next cycle."""
        rows = zip(self.followed, self.tried, self.has_ended, strict=True)
        rates = [(PRIOR * WEIGHT + followed) / (WEIGHT + tried) for followed, tried, ended in rows if not ended]
        return max(self.depths, key=lambda depth: expected_tokens(depth, rates) / (1 + self.level_cost * depth))

    def learn(self, depth: int, num_emitted: list[int]) -> None:
        """
        Learns from a cycle.

        Args:
            depth (`int`): that was drafted.
            num_emitted (`list[int]`): tokens that each row has got; 0 for a row that had ended.
        """
        self.has_ended = [emitted == 0 for emitted in num_emitted]
        for row, emitted in enumerate(num_emitted):
            if emitted:
                self.followed[row] = DECAY * self.followed[row] + emitted - 1
                self.tried[row] = DECAY * self.tried[row] + min(emitted, depth)

    def keep_rows(self, rows: list[int]) -> None:
        """Forgets all rows of the batch but some."""
        self.followed, self.tried = [self.followed[row] for row in rows], [self.tried[row] for row in rows]
        self.has_ended = [self.has_ended[row] for row in rows]


def expected_tokens(depth: int, rates: list[float]) -> float:
    """Tokens that a cycle is expected to emit, all rows together, if each level is followed at the row's rate."""
    return sum(rate**level for rate in rates for level in range(depth + 1))


__all__ = ["AdaptiveDepth"]
