"""Our own data set: labelled creatures, drawn by formulas, the same on every machine."""
_NAMES = 'Creatures draw'.split()

def __getattr__(name:str): # imported when it is used (PEP 562)
    if name not in _NAMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.species'), name)

def __dir__(): return _NAMES
