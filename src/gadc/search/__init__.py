"""Minimising the objective: greedy and medoid starts, exchanges, and the search that joins them."""

from gadc.search.candidates import Candidates
from gadc.search.multistart import SearchResult, Start, search
from gadc.search.nested import Nested, search_nested

__all__ = ["Candidates", "Nested", "SearchResult", "Start", "search", "search_nested"]
