"""Minimising the objective: greedy and medoid starts, exchanges, and the search that joins them."""

from gadc.search.candidates import Candidates
from gadc.search.multistart import SearchResult, Start, search
from gadc.search.nested import Nested, search_nested
from gadc.search.partition import Partitioned, search_partitioned

__all__ = [
    "Candidates",
    "Nested",
    "Partitioned",
    "SearchResult",
    "Start",
    "search",
    "search_nested",
    "search_partitioned",
]
