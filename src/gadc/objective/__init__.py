"""What a good subset is: transport, moments, confidence, and their sum."""

from gadc.objective.confidence import confidence_losses
from gadc.objective.look import Addition
from gadc.objective.total import Objective
from gadc.objective.transport import PartialTransport, partial_transport

__all__ = ["Addition", "Objective", "PartialTransport", "confidence_losses", "partial_transport"]
