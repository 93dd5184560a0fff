"""Re-ranking, Jaccard distance and query expansion; ``utils/scoring/`` implements them."""

from utils.scoring.reranking import jaccard_distance, query_expansion, re_ranking

__all__ = ["jaccard_distance", "query_expansion", "re_ranking"]
