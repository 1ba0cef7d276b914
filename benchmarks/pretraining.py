"""Does pre-training shorten GAN training, and do the four losses of PokeGAN-2.0 differ? KID against time.

    python benchmarks/pretraining.py --data data/species-64 --pretrain runs/pokegan2-msg-1/pretrain \\
        [--seconds 200] [--seeds 1] [--device cuda]

Each recipe is trained from the generator of step 2 (RUN/pretrain) and from nothing; both draw their latents
from the mixture of step 2. With --recipe, --start and --seed one of the trainings alone, so that several
can share a card.
"""
import argparse, json, time
from pathlib import Path

import torch

from pokegan.core import pick_device, run_eval
from pokegan.data import load_images
from pokegan.training.callbacks import save_png
from pokegan.training.trainer import Callback
from pokegan.metrics.distances import kid
from pokegan.metrics.features import extractor, features
from pokegan.models.pokegan2 import start_from
from pokegan.models.recipe import make_trainer, read_info
from pokegan.recipes import recipe

RECIPES = ('pokegan2-dcgan', 'pokegan2-wgan', 'pokegan2-wgangp', 'pokegan2-msg')


class KIDAt(Callback):
    "KID x1000 of the moving average at given times; the clock stands still meanwhile."
    def __init__(self, at, z, extract, real):
        self.at, self.z, self.extract, self.real = list(at), z, extract, real
        self.rows, self.lost = [], 0.

    def before_fit(self, t): self.look(t, 0.)

    def after_step(self, t):
        if t.device.type == 'cuda' and t.step % 10 == 0: torch.cuda.synchronize()
        if t.seconds - self.lost >= self.at[0]: self.look(t, t.seconds - self.lost)

    def look(self, t, seconds):
        t0 = time.perf_counter()
        self.x = torch.cat([run_eval(t.nets['G_ema'], z).cpu() for z in self.z.split(64)])
        value, se = kid(features(self.extract, self.x), self.real)
        score = dict(kid=round(1000*value, 1), se=round(1000*se, 1))
        self.rows.append(dict(seconds=round(seconds, 1), step=t.step) | score)
        self.at = [s for s in self.at if s > seconds]
        t.stop = '' if self.at else 'time is up'
        self.lost += time.perf_counter() - t0


def reals(images, extract) -> torch.Tensor: # (n,d)
    "Features of the pictures to compare with: 4,096 at most."
    which = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:4096]
    return features(extract, images.x[which])


def one(name: str, start: str, seed: int, a, device, images, judge: tuple):
    "One training, looked at five times; its line, and with --out its grid and rows."
    names = ('G', 'mixture') if start == 'pretrained' else ('mixture',)
    r = recipe(name, components=read_info(a.pretrain)['recipe']['components'])
    t = make_trainer(r, images, seed, device)
    start_from(t.nets, a.pretrain, names)
    if r.ema: t.nets['G_ema'].load_state_dict(t.nets['G'].state_dict())
    z, at = t.prior(a.n, torch.Generator().manual_seed(1)), [a.seconds*s for s in (.05, .1, .25, .5, 1)]
    look = KIDAt(at, z, *judge)
    t.callbacks.append(look)
    t.fit(minutes=a.seconds)  # the callback ends it
    kids = '  '.join(f"{r['seconds']:.0f} s {r['kid']:.0f}" for r in look.rows)
    print(f'{name:16} from {start:10} seed {seed}  {kids}   {t.step} steps', flush=True)
    if not a.out: return
    a.out.mkdir(parents=True, exist_ok=True)
    save_png(look.x[:16], a.out/f'{name}-{start}-{seed}.png')
    (a.out/f'{name}-{start}-{seed}.json').write_text(json.dumps(look.rows), encoding='utf-8')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--data', required=True)
    p.add_argument('--pretrain', required=True, type=Path)
    p.add_argument('--seconds', type=float, default=200)
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--n', type=int, default=1024, help='generated pictures for each KID')
    p.add_argument('--device')
    p.add_argument('--recipe', choices=RECIPES)
    p.add_argument('--start', choices=('pretrained', 'nothing'))
    p.add_argument('--seed', type=int)
    p.add_argument('--out', type=Path, help='folder for a grid and the rows of each training')
    a = p.parse_args()
    device, images = pick_device(a.device), load_images(a.data, 64)
    extract = extractor('effnet-lite0', device)
    judge = extract, reals(images, extract)
    for name in [a.recipe] if a.recipe else RECIPES:
        for start in [a.start] if a.start else ('pretrained', 'nothing'):
            for seed in range(a.seeds) if a.seed is None else [a.seed]:
                one(name, start, seed, a, device, images, judge)


if __name__ == '__main__': main()
