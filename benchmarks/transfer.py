"""What is a start worth? Recipes on few pictures and on many, scored on the way, against pictures held back.

    python benchmarks/transfer.py finetune projected-instance --data data/kaggle819-64 --pictures 10 100 0 \\
        --steps 50 100 200 --seeds 0 1 2 [--features effnet-lite0 runs/encoder-species-1] [--out transfer]

A recipe may come with changes (finetune:lr=0.001). Of each source so many pictures are trained on, chosen by
the seed (0: all of them); the others are held back, and KID, precision and recall are against those, or
against the training pictures where none are left. `memorised` is the share of new pictures that are nearer to
a training picture than nineteen in twenty of those held back are (where none are, than the training pictures
are to each other): 5 % by chance. Seconds are the processor's, without the scoring. 512 new pictures a row.
Rows go to OUT.csv as they are measured, and what is there is not measured again.
"""
import argparse, time
from pathlib import Path

import torch

from pokegan.core import run_eval, seeded
from pokegan.data import grid, load_images, to_uint8
from pokegan.metrics.distances import kid, memorised, precision_recall
from pokegan.metrics.features import features
from pokegan.models.encoder import named_features
from pokegan.models.recipe import make_trainer
from pokegan.recipes import recipe, variant
from pokegan.runs import open_start
from pokegan.training.callbacks import save_png
from pokegan.training.trainer import Callback
from truncation import read, write

COLUMNS = ['what', 'data', 'pictures', 'seed', 'step', 'of', 'judge', 'seconds',
           'kid', 'kid_se', 'precision', 'recall', 'memorised']


def split(images, n, seed): # -> training pictures, those held back or None
    order = seeded(seed, lambda: torch.randperm(len(images))).tolist()
    return (images.take(order[:n]), images.take(order[n:])) if 0 < n < len(images) else (images, None)


class Judge:
    "One network's opinion of new pictures, beside training pictures and those held back."
    def __init__(self, name, train, held):
        self.name, self.look = name, named_features(name, 'cpu')
        self.train = features(self.look, train.x)
        self.held = features(self.look, held.x[:1024]) if held else None

    def __call__(self, x):
        fake, real = features(self.look, x), self.train if self.held is None else self.held
        n = min(len(real), len(fake), 409)
        (k, se), (p, r) = kid(fake, real), precision_recall(real[:n], fake[:n])
        copies = memorised(fake, self.train, self.held).share
        return dict(kid=f'{1000*k:.1f}', kid_se=f'{1000*se:.1f}', precision=f'{p:.2f}', recall=f'{r:.2f}',
                    memorised=f'{copies:.3f}')


class ScoresCB(Callback):
    "Looks at the average of G after some steps; the time that takes does not count."
    order = 99
    def __init__(self, marks, tell): self.marks, self.tell, self.aside = marks, tell, 0.
    def before_fit(self, t):
        self.began = time.process_time()
        if 0 in self.marks: self.after_step(t)

    def after_step(self, t):
        if t.step not in self.marks: return
        now = time.process_time()
        self.tell(t, now - self.began - self.aside)
        self.aside += time.process_time() - now


def measure(a, words, source, images, n, seed, rows, save):
    "One training, and its rows."
    key = dict(what=words, data=Path(source).name, pictures=str(n or len(images)), seed=str(seed))
    wanted = [key | dict(step=str(s), of=str(a.steps[-1]), judge=j) for s in a.steps for j in a.features]
    if all(any(r.items() >= w.items() for r in rows) for w in wanted): return
    name, changes = variant(words)
    r, (train, held) = recipe(name, **changes), split(images, n, seed)
    judges = [Judge(j, train, held) for j in a.features]
    t = make_trainer(r, train, seed, 'cpu', start=open_start(r))
    z = t.prior(512, torch.Generator().manual_seed(5))
    def tell(t, seconds):
        x = to_uint8(run_eval(t.nets.get('G_ema', t.nets['G']), z))
        more = dict(step=str(t.step), of=str(a.steps[-1]), seconds=f'{seconds:.0f}')
        for j in judges: save(key | more | dict(judge=j.name) | j(x))
        parts = words, key['data'], key['pictures'], key['seed'], more['step']
        a.grids.mkdir(parents=True, exist_ok=True)
        save_png(grid(x[:40], 10), a.grids/('-'.join(p.replace('/', '_') for p in parts) + '.png'))
    t.callbacks += [*r.callbacks(t.nets, None, {}), ScoresCB(a.steps, tell)]
    t.callbacks.sort(key=lambda c: c.order)
    t.fit(steps=a.steps[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('what', nargs='+', help='recipes, perhaps with changes')
    p.add_argument('--data', nargs='+', required=True, help='the real images')
    p.add_argument('--pictures', type=int, nargs='+', default=[0], help='how many to train on; 0: all')
    p.add_argument('--steps', type=int, nargs='+', default=[50, 100, 200])
    p.add_argument('--seeds', type=int, nargs='+', default=[0])
    p.add_argument('--features', nargs='+', default=['effnet-lite0'])
    p.add_argument('--out', default='transfer', help='OUT.csv, and a folder OUT for grids')
    a = p.parse_args()
    path, a.grids = Path(f'{a.out}.csv'), Path(a.out)
    rows = read(path)
    def save(row):
        rows.append(row)
        write(path, rows, COLUMNS)
        print(*(f'{k} {v}' for k, v in row.items()), flush=True)
    for source in a.data:
        images = load_images(source, 64, progress=False)
        for n in a.pictures:
            for words in a.what:
                for seed in a.seeds: measure(a, words, source, images, n, seed, rows, save)


if __name__ == '__main__': main()
