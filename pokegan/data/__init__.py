"""From any source to one set of clean square pictures, and the two doors through which pixels change form."""
_NAMES = 'Images audit grid load_images show_grid to_float to_image to_uint8'.split()

def __getattr__(name:str): # imported when it is used (PEP 562)
    if name not in _NAMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.images'), name)

def __dir__(): return _NAMES
