"""Attention share, rollout, flow, logit attribution, overlap with boxes, faithfulness and answers of a store; no torch."""

from stratascope.analysis.answer_prediction import AnswerPrediction, answer_prediction
from stratascope.analysis.attention_maps import discard_weakest, fuse_heads
from stratascope.analysis.attention_share import AttentionShare, attention_share, row_entropy
from stratascope.analysis.attribution import LogitAttribution, carried_back, logit_attribution
from stratascope.analysis.box_cells import box_geometry
from stratascope.analysis.explanation import ExampleExplanation, explain_example
from stratascope.analysis.faithfulness import Faithfulness, faithfulness
from stratascope.analysis.flow import Flow, MinimumCut, flow, minimum_cut, span_flow
from stratascope.analysis.flow_results import FlowResult, flow_examples
from stratascope.analysis.head_agreement import head_agreement
from stratascope.analysis.head_ranking import HeadRanking, head_ranking, rank_heads
from stratascope.analysis.knockout_effects import KnockoutEffects, knockout_effects
from stratascope.analysis.localisation import Pointing, pointing
from stratascope.analysis.logit_lens import LogitLens, logit_lens
from stratascope.analysis.model_answers import AnswerConfidence, answer_confidence
from stratascope.analysis.overlap import BoxOverlap, attention_overlap, box_overlap, cell_overlap
from stratascope.analysis.principal_components import PrincipalComponents, principal_components
from stratascope.analysis.rollout import rollout, rollout_packed, rollout_stops
from stratascope.analysis.rollout_result import RolloutResult, rollout_examples
from stratascope.analysis.sinks import find_sinks
from stratascope.analysis.weighting import norm_attention, token_attribution, weighted_rows

__all__ = [
    "AnswerConfidence",
    "AnswerPrediction",
    "AttentionShare",
    "BoxOverlap",
    "ExampleExplanation",
    "Faithfulness",
    "Flow",
    "FlowResult",
    "HeadRanking",
    "KnockoutEffects",
    "LogitAttribution",
    "LogitLens",
    "MinimumCut",
    "Pointing",
    "PrincipalComponents",
    "RolloutResult",
    "answer_confidence",
    "answer_prediction",
    "attention_overlap",
    "attention_share",
    "box_geometry",
    "box_overlap",
    "carried_back",
    "cell_overlap",
    "discard_weakest",
    "explain_example",
    "faithfulness",
    "find_sinks",
    "flow",
    "flow_examples",
    "fuse_heads",
    "head_agreement",
    "head_ranking",
    "knockout_effects",
    "logit_attribution",
    "logit_lens",
    "minimum_cut",
    "norm_attention",
    "pointing",
    "principal_components",
    "rank_heads",
    "rollout",
    "rollout_examples",
    "rollout_packed",
    "rollout_stops",
    "row_entropy",
    "span_flow",
    "token_attribution",
    "weighted_rows",
]
