"""Learn GANs by making new creatures: a course of notebooks, and the library that they export.

    from pokegan import train
    run = train('dcgan-quick', 'creatures', minutes=3)
    run.sample(64)                                        # (64, 3, 64, 64) in [-1, 1]

train(recipe, data, …)     a recipe, trained into a run folder      resume(folder, …)    go on with it
load_run(folder)           a run folder, opened: sample, encode     pretrained()         ready generators
load_images(source, …)     any source as clean square pictures      evaluate(folder, …)  scores of a run
recipe(name, **changes)    a recipe by name; RECIPES has them all   explore(run)         sliders, in a notebook

Rooms: core, creatures, data, training, metrics, latents, models; above them recipes, runs, compare, publish,
widgets and cli. Each module is exported by the lesson that is named in its second line.
"""
__version__ = "0.1.0"

from typing import TYPE_CHECKING

from pokegan._lazy import lazy

if TYPE_CHECKING:
    from pokegan.compare import evaluate as evaluate
    from pokegan.data.images import load_images as load_images
    from pokegan.recipes import RECIPES as RECIPES, recipe as recipe
    from pokegan.runs import load_run as load_run, pretrained as pretrained, resume as resume, train as train
    from pokegan.widgets import explore as explore

__getattr__, __dir__ = lazy(__name__, {
    'compare': 'evaluate', 'data.images': 'load_images', 'recipes': 'RECIPES recipe',
    'runs': 'load_run pretrained resume train', 'widgets': 'explore'}, also=['__version__'])
