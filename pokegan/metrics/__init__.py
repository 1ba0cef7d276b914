"""How good, how varied, how new: features, distances, scores with a floor and a ceiling."""
_NAMES = 'METRICS Scores real_reference reference score_images score_table'.split()

def __getattr__(name:str): # imported when it is used (PEP 562)
    if name not in _NAMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.scores'), name)

def __dir__(): return _NAMES
