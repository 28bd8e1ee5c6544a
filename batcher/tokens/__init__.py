"""Tokens: the estimate for admission, the ratio that it learns, and exact counts."""

from batcher.tokens.estimate import DEFAULT_OUTPUT, Estimate, estimate
from batcher.tokens.exact import count_tokens
from batcher.tokens.ratio import Ratios

__all__ = ["DEFAULT_OUTPUT", "Estimate", "Ratios", "count_tokens", "estimate"]
