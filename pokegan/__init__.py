"""Learn GANs by making new creatures: a course of notebooks, and the library that they export.

    from pokegan import train
    run = train('dcgan-quick', 'creatures', minutes=3)
    run.sample(64)                                        # (64, 3, 64, 64) in [-1, 1]

train(recipe, data, …)     a recipe, trained into a run folder      resume(folder, …)    go on with it
load_run(folder)           a run folder, opened: sample, encode     pretrained()         ready generators
load_images(source, …)     any source as clean square pictures      evaluate(folder, …)  scores of a run
recipe(name, **changes)    a recipe by name; RECIPES: all of them   explore(run)        sliders, in a notebook
examine(folder)            what is the matter with a run

Rooms: core, creatures, data, training, metrics, latents, models; above them recipes, runs, compare, publish,
doctor, widgets and cli. Each module is exported by the lesson that its third line names.
"""
__version__ = "0.1.0"

_HOME = dict(evaluate='compare', examine='doctor', explore='widgets', load_images='data.images',
             RECIPES='recipes', recipe='recipes', load_run='runs', pretrained='runs', resume='runs',
             train='runs')

def __getattr__(name:str): # imported when it is used (PEP 562): `import pokegan` does no work
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    if name in ('train', 'resume'): import_module(f'{__name__}.doctor') # the live view asks it
    return getattr(import_module(f'{__name__}.{_HOME[name]}'), name)

def __dir__(): return [*_HOME, '__version__']
