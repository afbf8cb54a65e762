"""Minimising the objective: greedy and medoid starts, exchanges, and the search that joins them."""

from gadc.search.candidates import Candidates
from gadc.search.multistart import SearchResult, Start, search

__all__ = ["Candidates", "SearchResult", "Start", "search"]
