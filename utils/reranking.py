"""Re-ranking, neighbours and query expansion; the code stands in ``utils/scoring/``."""

from utils.scoring.reranking import jaccard_distance, query_expansion, re_ranking

__all__ = ["jaccard_distance", "query_expansion", "re_ranking"]
