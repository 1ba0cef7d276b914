"""Do reconstruction terms keep kinds alive? A DCGAN, AEGAN, and AEGAN without them, in equal time.

    python benchmarks/coverage.py [--minutes 3.3] [--seeds 3] [--device cuda] [--rival aegan --seed 0]

All three have the same G and Dx, of the published widths. Data: 64 px creatures of 24 known species; a
classifier counts the kinds among 1,000 pictures (lessons 08d and 10b). With --rival and --seed one of the
trainings alone, so that several can share a card.
"""
import argparse, random
from dataclasses import replace

import torch

from pokegan.core import pick_device, run_eval
from pokegan.training.losses import d_bce, g_bce
from pokegan.training.trainer import adam, gan_phases, Trainer
from pokegan.metrics.coverage import coverage_rows, labelled_creatures, train_classifier
from pokegan.latents.priors import prior
from pokegan.models.aegan import AEGAN_RECIPES

AEGAN = AEGAN_RECIPES[0]
LATENTS = prior(AEGAN.latent, AEGAN.nz)
RIVALS = dict(dcgan=AEGAN, aegan=AEGAN, norec=replace(AEGAN, rec_x=0., rec_z=0.))


def trainer(rival: str, seed: int, images, device) -> Trainer:
    "One rival, ready to fit; the DCGAN has G and Dx of the AEGAN, started alike."
    r = RIVALS[rival]
    nets = {k: m.to(device, memory_format=torch.channels_last) for k, m in r.networks(seed).items()}
    own = dict(seed=seed, device=device)
    if rival != 'dcgan': return Trainer(nets, r.phases(nets), images, LATENTS, r.batch, **own)
    G, D, kw = nets['G'], nets['Dx'], dict(betas=r.betas, weight_decay=r.weight_decay)
    opts = adam(G, lr=r.lr, **kw), adam(D, lr=r.lr_d, **kw)
    def d_loss(*logits_and_targets): return d_bce(*logits_and_targets)/2
    game = gan_phases(G, D, *opts, d_loss, g_bce, targets=r.targets)
    return Trainer(dict(G=G, D=D), game, images, LATENTS, r.batch, seed=seed, device=device)


def told(found, other) -> str:
    "What was found, in a line."
    return f'covered {found.share:4.0%}  counted {found.counted:4.0%}  distance {found.distance(other):.2f}'


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--minutes', type=float, default=3.3)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--device')
    p.add_argument('--rival', choices=tuple(RIVALS))
    p.add_argument('--seed', type=int)
    a = p.parse_args()
    device, few = pick_device(a.device), sorted(random.Random(0).sample(range(1000), 24))
    images, others = labelled_creatures(3840, few, size=64), labelled_creatures(2000, few, size=64, seed=1)
    judge = train_classifier(labelled_creatures(2400, few, size=64), 'species', epochs=6)
    z = LATENTS(1000, torch.Generator().manual_seed(99))
    for rival in [a.rival] if a.rival else RIVALS:
        shares = []
        for seed in range(a.seeds) if a.seed is None else [a.seed]:
            t = trainer(rival, seed, images, device).fit(minutes=a.minutes)
            x = torch.cat([run_eval(t.nets['G'], part).cpu() for part in z.split(250)])
            found, other = coverage_rows({rival: x}, others.x, judge)
            shares.append(found[rival].share)
            print(f'{rival:6} seed {seed}  {t.step:6,} steps  {told(found[rival], other)}', flush=True)
        v = torch.tensor(shares)
        if len(v) > 1: print(f'{rival:6} covered {v.mean():.0%} ± {v.std()/len(v)**.5:.0%} ({len(v)} seeds)')
    print('real   ' + told(found['real (floor)'], other))


if __name__ == '__main__': main()
