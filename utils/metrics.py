"""The public metrics of retrieval; ``utils/scoring/`` implements them."""

from utils.scoring.metrics import evaluate_features, evaluate_roc, roc
from utils.scoring.ranking import RankResult, evaluate_rank
from utils.scoring.retrieval import RetrievalResult, evaluate_retrieval, nmi

__all__ = [
    "RankResult", "RetrievalResult", "evaluate_features", "evaluate_rank", "evaluate_retrieval", "evaluate_roc", "nmi",
    "roc",
]  # fmt: skip
