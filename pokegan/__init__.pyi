# What type checkers read in place of __init__.py, where the names are imported when they are used.
from pokegan.compare import evaluate as evaluate
from pokegan.data.images import load_images as load_images
from pokegan.doctor import examine as examine
from pokegan.recipes import RECIPES as RECIPES, recipe as recipe
from pokegan.runs import load_run as load_run, pretrained as pretrained, resume as resume, train as train
from pokegan.widgets import explore as explore

__version__: str
