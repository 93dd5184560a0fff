"""Re-ranking, Jaccard distance and changes of features by their neighbours; ``utils/scoring/`` implements them."""

from utils.scoring.nfc import neighbour_centralisation
from utils.scoring.reranking import jaccard_distance, query_expansion, re_ranking

__all__ = ["jaccard_distance", "neighbour_centralisation", "query_expansion", "re_ranking"]
