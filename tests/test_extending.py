"""A family, a source and a metric from a user's own file: everything works with them,
and no line of the package is touched."""
import os

import fresh

MINE = '''
from dataclasses import dataclass

import torch
from pokegan.core import seeded
from pokegan.data import Images
from pokegan.data.download import SOURCES
from pokegan.metrics.scores import METRICS, Metric
from pokegan.models.dcgan import conv_discriminator, conv_generator
from pokegan.models.recipe import Recipe
from pokegan.training.losses import d_hinge, g_hinge
from pokegan.training.trainer import adam, gan_phases


@dataclass(frozen=True)
class MineRecipe(Recipe):
    family = 'mine'
    nf: int = 8

    def build(self):
        return dict(G=conv_generator(self.size, self.nz, self.nf), D=conv_discriminator(self.size, self.nf))

    def phases(self, nets):
        opts = [adam(nets[k], lr=self.lr, betas=self.betas) for k in 'GD']
        return gan_phases(nets['G'], nets['D'], *opts, d_hinge, g_hinge)


def stripes(n, **how):
    x = torch.zeros(int(n), 3, 32, 32, dtype=torch.uint8)
    g = torch.Generator().manual_seed(0)
    x[:, :, ::4] = torch.randint(0, 256, (int(n), 3, 1, 1), generator=g).to(torch.uint8)
    return Images(x)


SOURCES['stripes'] = stripes
def darkness(fake, real): return abs(float(fake.x.float().mean() - real.x.float().mean()))/255
METRICS['darkness'] = Metric('darkness', 100, 1, 'lower', darkness)
recipe = MineRecipe('mine-quick', 'a user', size=32, nz=16, batch=16)
'''
USE = '''
import sys
import mine
from pokegan import evaluate, load_images, load_run, resume, train
from pokegan.compare import compare

run = train(mine.recipe, 'stripes:64', run='runs/mine', steps=4, progress=False)
assert run.recipe == mine.recipe and run.sample(3).shape == (3, 3, 32, 32)
again = resume('runs/mine', steps=6, progress=False)
assert again.info['step'] == 6 and load_run('runs/mine').recipe.family == 'mine'
scores = evaluate('runs/mine', n=32, features='random')
assert 0 <= scores['darkness'].value <= 1 and 'darkness' in str(scores)
table = compare([mine.recipe, 'dcgan-quick:ngf=8,ndf=8'], 'stripes:64', size=32, minutes=.01, n=32,
                features='random', out='cmp', progress=False)
assert 'mine-quick' in table and 'darkness' in table
print('all of it works')
'''


def test_from_outside(tmp_path):
    (tmp_path/'mine.py').write_text(MINE, encoding='utf-8')
    (tmp_path/'use.py').write_text(USE, encoding='utf-8')
    p = fresh.run([], tmp_path, os.environ, script='use.py')
    assert p.returncode == 0 and 'all of it works' in p.stdout, p.stderr[-2000:]


def test_a_family_that_nobody_imported_is_one_line(tmp_path):
    (tmp_path/'mine.py').write_text(MINE, encoding='utf-8')
    (tmp_path/'use.py').write_text(USE.split('again =')[0], encoding='utf-8')
    assert fresh.run([], tmp_path, os.environ, script='use.py').returncode == 0
    p = fresh.run(['sample', 'runs/mine'], tmp_path, os.environ)
    assert p.returncode == 2 and len(p.stderr.splitlines()) == 1
    assert "'mine'" in p.stderr and 'import' in p.stderr
