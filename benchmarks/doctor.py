"""Does the doctor find what is wrong? Short runs with known troubles, and the names that it gives them.

    python benchmarks/doctor.py --runs runs/doctor --out docs/doctor

Each trouble is made by its own cause: other data, another learning rate, a step that is spoiled. The runs of
seeds 0 and 1 (healthy: 0 to 4) set the limits; those of the other seeds judge them. What is there is not
trained again. Writes OUT.csv, the signs of each run, and OUT.md, the counts and the table of confusions.
"""
import argparse, csv, time
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path

import torch
from torch import nn

from pokegan.core import replacing
from pokegan.data.images import Images, load_images
from pokegan.doctor import examine
from pokegan.models.dcgan import GANRecipe
from pokegan.recipes import recipe
from pokegan.runs import train
from pokegan.training.trainer import Callback

SMALL = dict(size=32, nz=32, ngf=8, ndf=8, batch=16, lr=2e-3, ema=.98)
STEPS, PICTURES = 200, 512


class Doing(Callback):
    "A function of the networks, before the first step and after each one."
    def __init__(self, do): self.do = do
    def before_fit(self, t): self.do(t.nets)
    def after_step(self, t): self.do(t.nets)


@torch.no_grad()
def deaf(nets: dict): # G hears none of its latents
    for k in ('G', 'G_ema'): next(nets[k].parameters()).zero_()


@torch.no_grad()
def three_of_four(nets: dict): # kernels of 3 with stride 2: a pixel is painted by one, two or four taps
    for k in ('G', 'G_ema'):
        last = [m for m in nets[k].modules() if isinstance(m, nn.ConvTranspose2d)][-1]
        last.weight[:, :, 3:].zero_()
        last.weight[:, :, :, 3:].zero_()


def half(x, generator): # D sees no single pixels, so nothing corrects them
    return nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2)


# Changes of the reals alone, which G then learns as well.
def redder(x, generator): return (x + x.new_tensor([.9, -.6, -.6])[:, None, None]).clamp(-1, 1)
def bluer(x, generator): return (x + x.new_tensor([-.6, -.6, .9])[:, None, None]).clamp(-1, 1)


class Spoiled(GANRecipe):
    "A recipe whose game has one fault; its run folder looks like any other."
    momentum, rates, do, reals, seen = .1, {}, None, None, None

    def build(self):
        nets = super().build()
        for m in nets['G'].modules():
            if isinstance(m, nn.BatchNorm2d): m.momentum = self.momentum
        return nets

    def phases(self, nets):
        out = super().phases(nets)
        for p in out:
            for group in p.opt.param_groups: group['lr'] = self.lr*self.rates.get(p.name, 1)
        return out

    def change_reals(self): return self.reals
    def change_all(self, nets): return self.seen
    def callbacks(self, nets, folder, sets):
        return super().callbacks(nets, folder, sets) + ([Doing(self.do)] if self.do else [])


TROUBLES = { # name -> fields of the recipe, faults, pictures, budget
    'healthy': dict(),
    'collapse': dict(fault=dict(do=deaf)),
    'D has won': dict(fault=dict(rates=dict(G=.03))),
    'D too weak': dict(fault=dict(rates=dict(D=.1))),
    'range': dict(fault=dict(reals=lambda x, generator: (x + 1)/2)),
    'learning rate': dict(lr=.2),
    'memorising': dict(pictures=6),
    'checkerboard': dict(fault=dict(do=three_of_four, seen=half)),
    'reddened': dict(fault=dict(reals=redder)),
    'blued': dict(fault=dict(reals=bluer)),
    'statistics': dict(fault=dict(momentum=3e-4)),
    'few pictures': dict(pictures=48),
    'unfinished': dict(budget=dict(steps=30)),
    'slow': dict(fault=dict(do=lambda nets: time.sleep(.25)), budget=dict(minutes=.1)),
}


SAME = { # what the doctor calls it, where that is another name
    'range': 'range mismatch', 'learning rate': 'learning rate too high', 'reddened': 'colours drift',
    'blued': 'colours drift', 'statistics': 'running statistics off', 'few pictures': 'too few pictures',
    'slow': 'too slow for the budget'}
SEEDS = dict(healthy=range(10), reddened=(0, 2, 3), blued=(1, 4))


def seeds(name: str) -> list: return list(SEEDS.get(name, range(5)))


def judges(name: str, seed: int) -> bool: # or sets the thresholds
    return seed >= (5 if name == 'healthy' else 2)


def spoiled(fault: dict, **changes) -> GANRecipe:
    r = recipe('dcgan-quick', **SMALL | changes)
    made = type('Spoiled', (Spoiled,), {k: staticmethod(v) if callable(v) else v for k, v in fault.items()})
    return made(**{f.name: getattr(r, f.name) for f in fields(r)})


@cache
def creatures(n: int) -> Images: return load_images(f'creatures:{n}', 32, progress=False)


def make(name: str, seed: int, folder: Path):
    "One run."
    how = dict(fault={}, pictures=PICTURES, budget=dict(steps=STEPS)) | TROUBLES[name]
    fault, n, budget = (how.pop(k) for k in ('fault', 'pictures', 'budget'))
    grids = max(4, 1200//n)
    try: train(spoiled(fault, **how), creatures(n), folder, seed=seed, grid_epochs=grids, progress=False,
               device='cpu', **budget)
    except ValueError as e: print(f'{folder.name}: {e}')


def look(a) -> list: # rows of OUT.csv
    "What the doctor says of every run that is there."
    rows = []
    for name in TROUBLES:
        for seed in seeds(name):
            folder = a.runs/f"{name.replace(' ', '-')}-{seed}"
            if not (folder/'losses.png').exists(): continue
            r = examine(folder)
            signs = {k: '' if v is None else f'{v:.5g}' for k, v in r.signs.items()}
            which = 'judges' if judges(name, seed) else 'sets'
            rows.append(dict(made=name, seed=seed, half=which, is_=SAME.get(name, name), told=r.name) | signs)
    return rows


def right(rows: list) -> str: # '34 of 36, 94%'
    n = sum(r['is_'] == r['told'] for r in rows)
    return f'{n} of {len(rows)}, {n/max(1, len(rows)):.0%}'


def table(rows: list) -> str:
    "Markdown: what it was, and what it was called."
    names = list(dict.fromkeys(r['is_'] for r in rows)) # a row each; columns: what was told of any
    counts = Counter((r['is_'], r['told']) for r in rows)
    lines = ['| made | runs | ' + ' | '.join(names) + ' |', '|---'*(len(names) + 2) + '|']
    for k in names:
        told = [str(counts[k, j] or '') for j in names]
        lines.append(f"| **{k}** | {sum(r['is_'] == k for r in rows)} | " + ' | '.join(told) + ' |')
    return '\n'.join(lines)


def write(rows: list, out: Path):
    with replacing(out.with_suffix('.csv')) as p, open(p, 'w', newline='', encoding='utf-8') as f:
        w = csv.DictWriter(f, list(rows[0]))
        w.writeheader()
        w.writerows(rows)
    halves = {k: [r for r in rows if r['half'] == k] for k in ('sets', 'judges')}
    tables = [f'## Runs that {words}: {right(halves[k])}\n\n{table(halves[k])}'
              for k, words in dict(judges='judged', sets='set the limits').items() if halves[k]]
    begin = '<!-- written by benchmarks/doctor.py -->'
    path = out.with_suffix('.md')
    said = path.read_text(encoding='utf-8').split(begin)[0] if path.exists() else '# The doctor, judged\n\n'
    path.write_text(said + begin + '\n\n' + '\n\n'.join(tables) + '\n', encoding='utf-8')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--runs', type=Path, default=Path('runs/doctor'))
    p.add_argument('--out', type=Path, default=Path('docs/doctor'), help='path of OUT.csv and OUT.md')
    p.add_argument('--only', nargs='*', default=list(TROUBLES))
    p.add_argument('--seeds', type=int, nargs='*', default=list(range(10)))
    a = p.parse_args()
    for seed in a.seeds:
        for name in a.only:
            folder = a.runs/f"{name.replace(' ', '-')}-{seed}"
            if seed not in seeds(name) or (folder/'losses.png').exists(): continue
            wall, core = time.perf_counter(), time.process_time()
            make(name, seed, folder)
            wall, core = time.perf_counter() - wall, time.process_time() - core
            print(f'{folder.name} {wall:.0f} s, {core:.0f} s of a core', flush=True)
    rows = look(a)
    write(rows, a.out)
    for k in ('sets', 'judges'): print(k, right([r for r in rows if r['half'] == k]))


if __name__ == '__main__': main()
