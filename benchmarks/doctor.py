"""Does the doctor find what is wrong? Short runs with known troubles, and the names that it gives them.

    python benchmarks/doctor.py --runs runs/doctor --out docs/doctor

Each trouble is made by its own cause: other data, another learning rate, a step that is spoiled. Half of the
runs, of seeds 0 and 1 (healthy: 0 to 4), set the thresholds; those of the other seeds judge them. What is there
is not trained again. Writes OUT.csv, the signs of each run, and OUT.md, the count and the table of confusions.
"""
import argparse, time
from dataclasses import fields
from functools import cache
from pathlib import Path

import torch
from torch import nn

from pokegan.data.images import Images, load_images
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
def one_tap(nets: dict): # a kernel of 1 with stride 2: every other row and column is left out
    for k in ('G', 'G_ema'):
        last = [m for m in nets[k].modules() if isinstance(m, nn.ConvTranspose2d)][-1]
        kept = last.weight[:, :, 1, 1].clone()
        last.weight.zero_()[:, :, 1, 1] = kept


# Changes of the reals alone, which G then learns as well.
def grey(x, generator): return x.mean(1, keepdim=True).expand_as(x).contiguous()
def redder(x, generator): return (x + x.new_tensor([.6, -.3, -.3])[:, None, None]).clamp(-1, 1)


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
    'memorising': dict(pictures=4, fault=dict(rates=dict(D=.3)), budget=dict(steps=400)),
    'checkerboard': dict(fault=dict(do=one_tap)),
    'reddened': dict(fault=dict(reals=redder)),
    'greyed': dict(fault=dict(reals=grey)),
    'statistics': dict(fault=dict(momentum=3e-4)),
    'few pictures': dict(pictures=48),
    'unfinished': dict(budget=dict(steps=30)),
    'slow': dict(fault=dict(do=lambda nets: time.sleep(.25)), budget=dict(minutes=.1)),
}


def seeds(name: str) -> list: return list(SEEDS.get(name, range(5)))


SEEDS = dict(healthy=range(10), reddened=(0, 2, 3), greyed=(1, 4))


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
    how = dict(TROUBLES[name])
    fault, n, budget = (how.pop(k, d) for k, d in dict(fault={}, pictures=PICTURES, budget=dict(steps=STEPS)).items())
    try: train(spoiled(fault, **how), creatures(n), folder, seed=seed, grid_epochs=max(4, 1200//n), progress=False,
               device='cpu', **budget)
    except ValueError as e: print(f'{folder.name}: {e}')


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
            if seed in seeds(name) and not (folder/'losses.png').exists():
                t = time.perf_counter(), time.process_time()
                make(name, seed, folder)
                print(folder.name, f'{time.perf_counter()-t[0]:.0f} s, {time.process_time()-t[1]:.0f} s of a core', flush=True)


if __name__ == '__main__': main()
