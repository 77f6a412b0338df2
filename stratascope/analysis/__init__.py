"""From the store to attention share and rollout; no torch."""

from stratascope.analysis.rollout import RolloutResult, rollout, rollout_examples
from stratascope.analysis.share import AttentionShare, attention_share

__all__ = ["AttentionShare", "RolloutResult", "attention_share", "rollout", "rollout_examples"]
