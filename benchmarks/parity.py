"""Do the recipes get what the originals got? Two questions, each a command.

    python benchmarks/parity.py bisect --data data/kaggle819-64 --steps 300 --every 100 --seeds 0 1 2
    python benchmarks/parity.py sheets RUN … --data data/kaggle819-64 --steps 6143 12285

`bisect` trains DCGAN819 and a literal copy of its published loop from the same pictures, and the
copy with one thing changed at a time. `sheets` scores the pictures of finished runs. Both score as
the published sheets must be scored: 64 tiles of 64 px with 2 px between them, a JPEG of 530 px and
quality 75, cut again, beside real pictures that went the same way. KID is times 1000. Sheets were
drawn with batch statistics (G in training mode); `plain` is what a user of this package gets:
running statistics, and no JPEG. Rows go to OUT.csv as they are measured; what is there is not
measured again.
"""
import argparse, copy, io, time
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import make_grid

from literal import Literal
from pokegan.core import run_eval
from pokegan.data import load_images, to_float, to_uint8
from pokegan.data.images import to_image
from pokegan.metrics.distances import kid
from pokegan.metrics.features import extractor, features
from pokegan.models.recipe import make_trainer, read_info
from pokegan.recipes import recipe, variant
from pokegan.runs import load_run
from pokegan.training.health import diversity
from truncation import read, write

CHANGES = { # name -> what is changed in the literal loop
    'literal': {}, 'normal start': dict(normal_start=True), 'no norm on the last': dict(sn_last=False),
    'latents reused': dict(reuse=True), 'bfloat16': dict(bf16=True)}
SCORES = ['kid_sheet', 'kid_sheet_se', 'kid_plain', 'kid_plain_se', 'diversity']
COLUMNS = dict(bisect=['what', 'batch', 'seed', 'step', 'images', 'n', *SCORES, 'acc', 'seconds'],
               sheets=['run', 'recipe', 'batch', 'seed', 'step', 'images', 'epoch', 'n', *SCORES])


def through_sheet(x): # (n,3,64,64) uint8, n a multiple of 64 or the last sheet has gaps -> the same
    "What a published sheet does to its tiles."
    out = []
    for part in x.split(64):
        file = io.BytesIO()
        to_image(make_grid(part, 8, 2)).save(file, 'JPEG', quality=75)
        sheet, side = pil_to_tensor(Image.open(file)), x.shape[-1]
        places = [divmod(i, 8) for i in range(len(part))]
        out += [sheet[:, 2+(side+2)*r:, 2+(side+2)*c:][:, :side, :side] for r, c in places]
    return torch.stack(out)


class Judge:
    "Scores generators against one set of real pictures."
    def __init__(self, images):
        self.extract = extractor('effnet-lite0', 'cpu')
        self.real = {s: self.look(images.x, s) for s in (True, False)}
        self.spread = diversity(to_float(images.x[::3]))

    def look(self, x, sheet): return features(self.extract, through_sheet(x) if sheet else x)

    @torch.no_grad()
    def __call__(self, G, z): # z: batches of 64 latents, as a sheet holds
        alive = copy.deepcopy(G).train() # its running averages stay as they are
        out = {}
        for name, draw in dict(sheet=alive, plain=lambda p: run_eval(G, p)).items():
            x = to_uint8(torch.cat([draw(p).float() for p in z]))
            k, se = kid(self.look(x, name == 'sheet'), self.real[name == 'sheet'])
            out |= {f'kid_{name}': f'{1000*k:.1f}', f'kid_{name}_se': f'{1000*se:.1f}'}
            out.setdefault('diversity', f'{diversity(to_float(x[:64]))/self.spread:.2f}')
        return out


class Ours:
    "A recipe, with the face of `Literal`."
    def __init__(self, images, seed, batch, name):
        name, changes = variant(name)
        self.t = make_trainer(recipe(name, batch=batch, **changes), images, seed, 'cpu')
        self.G, self.right = self.t.nets['G'], []

    def one_step(self):
        self.t.one_step()
        self.right.append(float(self.t.logs['D/acc']))


def bisect(a, images, judge, rows, save):
    x, z = to_float(images.x), torch.randn(a.n, 128, generator=torch.Generator().manual_seed(5))
    for seed in a.seeds:
        for what in a.what:
            key = dict(what=what, batch=str(a.batch), seed=str(seed), n=str(a.n))
            if any(r.items() >= (key | dict(step=str(a.steps))).items() for r in rows): continue
            literal = what in CHANGES
            if literal: play = Literal(x, seed, a.batch, **CHANGES[what])
            else: play = Ours(images, seed, a.batch, what)
            zs, seconds = (z[:, :, None, None] if literal else z).split(64), 0.
            for step in range(a.every, a.steps+1, a.every):
                t0 = time.process_time()
                for _ in range(a.every): play.one_step()
                seconds += time.process_time() - t0
                with torch.random.fork_rng(): scores = judge(play.G, zs)
                right = sum(play.right[-20:])/len(play.right[-20:])
                done = dict(step=str(step), images=str(a.batch*step), acc=f'{right:.3f}')
                save(key | done | dict(seconds=f'{seconds:.0f}') | scores)


def sheets(a, images, judge, rows, save):
    for folder, step in [(f, s) for f in a.runs for s in a.steps or [None]]:
        run = load_run(folder, step=step)
        info, key = run.info, dict(run=Path(folder).name, step=str(run.info['step']), n=str(a.n))
        if any(r.items() >= key.items() for r in rows): continue
        z = run.latents(a.n, seed=5).split(64)
        images_seen = round(info['images']*info['step']/read_info(run.folder)['step'])
        seen = dict(images=str(images_seen), epoch=f"{images_seen/info['data']['n']:.1f}")
        what = dict(recipe=run.recipe.name, batch=str(run.recipe.batch), seed=str(info['seed']))
        save(key | what | seen | judge(run.G, z))


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = p.add_subparsers(dest='command', required=True)
    for name, n in dict(bisect=256, sheets=512).items():
        c = commands.add_parser(name)
        c.add_argument('--data', required=True, help='the real images')
        c.add_argument('--n', type=int, default=n, help='pictures that are scored, a multiple of 64')
        c.add_argument('--out', default=name)
    c.add_argument('runs', nargs='+', help='run folders')
    c.add_argument('--steps', type=int, nargs='*', help='checkpoints that were kept; default the last')
    b = commands.choices['bisect']
    b.add_argument('--what', nargs='+', default=[*CHANGES, 'dcgan-819'], help='changes, or recipes')
    b.add_argument('--batch', type=int, default=64)
    b.add_argument('--steps', type=int, default=300)
    b.add_argument('--every', type=int, default=100, help='steps between two looks')
    b.add_argument('--seeds', type=int, nargs='+', default=[0])
    a = p.parse_args()
    images, path = load_images(a.data, 64), Path(f'{a.out}.csv')
    judge, rows = Judge(images), read(path)
    def save(row):
        rows.append(row)
        write(path, rows, COLUMNS[a.command])
        print(*(f'{k} {v}' for k, v in row.items()), flush=True)
    dict(bisect=bisect, sheets=sheets)[a.command](a, images, judge, rows, save)


if __name__ == '__main__': main()
