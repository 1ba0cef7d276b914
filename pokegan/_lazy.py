"""Packages whose names are imported when they are used (PEP 562): `import pokegan` does no work."""
import sys
from collections.abc import Callable
from importlib import import_module


def lazy(
    package:str, # its __name__
    names:dict, # module, relative to it -> names, with spaces between them
    also:list|tuple=() # names that are there already
) -> tuple[Callable, Callable]: # the package's __getattr__ and __dir__
    "A package shows names of its modules without importing these before one is used."
    home = {n: m for m, ns in names.items() for n in ns.split()}

    def get(name:str):
        if name not in home: raise AttributeError(f'module {package!r} has no attribute {name!r}')
        value = getattr(import_module(f'{package}.{home[name]}'), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted([*home, *also])
