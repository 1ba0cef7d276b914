"""Our own data set: labelled creatures, drawn by formulas, the same on every machine."""
from pokegan._lazy import lazy

__getattr__, __dir__ = lazy(__name__, {'species': 'Creatures draw'})
