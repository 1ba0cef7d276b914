"""How good, how varied, how new: features, distances, scores with a floor and a ceiling."""
from pokegan._lazy import lazy

__getattr__, __dir__ = lazy(__name__, {'scores': 'METRICS Scores real_reference reference score_images score_table'})
