"""Run folders of earlier versions keep opening. Those in old_runs/ were written by pokegan 0.1.0, on 32
creatures; pictures.png is what their generators drew then. An encoder weighs 85 MB, so only the names and
shapes of its weights are kept."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pokegan.runs import load_run, resume

ENCODER_BYTES = 85_295_300 # of the whole file
OLD = Path(__file__).parent/'old_runs'
MADE = dict(gan={'G', 'D'},
            aegan={'G', 'E', 'Dx', 'Dz'},
            instance={'G', 'D', 'codes'},
            pokegan2={'G', 'D', 'mixture'})


def side_by_side(x): # (n,3,s,s) in [-1,1] to (s,n*s,3) in [0,255]
    x = ((x + 1)*127.5).round().permute(0, 2, 3, 1)
    return np.concatenate([*x.numpy()], 1)


def test_each_family_is_there():
    assert {p.name for p in OLD.iterdir()} == {*MADE, 'encoder'}
    assert sum(p.stat().st_size for p in OLD.rglob('*')) < 600_000


@pytest.mark.parametrize('name', MADE)
def test_an_old_run_opens_whole(name):
    run = load_run(OLD/name)
    assert run.info['versions']['pokegan'] == '0.1.0'
    assert set(run.nets) == MADE[name]
    assert run.recipe.family == name and run.recipe.size == 16


@pytest.mark.parametrize('name', MADE)
def test_an_old_run_draws_what_it_drew(name):
    x = load_run(OLD/name).sample(4, seed=1)
    with Image.open(OLD/name/'pictures.png') as im: was = np.asarray(im.convert('RGB'), float)
    assert np.abs(side_by_side(x) - was).max() <= 2, 'another processor may round in another way'


def test_an_old_game_keeps_its_rules():
    "What run.json did not yet say: one batch of fakes for D and G, budgets, pixels in step 2."
    r = load_run(OLD/'pokegan2').recipe
    now = dict(redraw='batch', faithful=False, pixel_weight=1., encoder_epochs=0., pretrain_epochs=0.)
    assert {k: getattr(r, k) for k in now} == now


def test_pictures_have_the_codes_that_they_had():
    run = load_run(OLD/'aegan')
    was = torch.tensor([[.0423, .0014], [.0427, .0023], [.0424, .0017], [.0424, .0016]])
    assert torch.allclose(run.encode(run.sample(4, seed=1)), was, atol=2e-4)


def moved(a, b): # how far all weights together are from where they were, by network
    out = {}
    for k in a.nets:
        pairs = zip(a.nets[k].parameters(), b.nets[k].parameters())
        out[k] = sum((p - q).detach().abs().sum().item() for p, q in pairs)
    return out


def test_an_old_run_goes_on_where_it_was(tmp_path):
    before = load_run(OLD/'gan')
    shutil.copytree(OLD/'gan', tmp_path/'gan')
    after = resume(tmp_path/'gan', steps=before.info['step'] + 2, device='cpu', progress=False)
    assert (after.info['step'], after.info['images']) == (302, 302*8)
    assert [row['step'] for row in after.log] == [*range(20, 301, 20), 302], 'the log goes on'
    want = dict(G=1.03896, D=.996077)
    assert moved(before, after) == pytest.approx(want, rel=2e-3), 'Adam remembers as well'


def test_an_old_encoder_opens(tmp_path):
    "The header of its file, and zeros for the weights."
    shutil.copy(OLD/'encoder/run.json', tmp_path)
    header = (OLD/'encoder/last.safetensors.header').read_bytes()
    with open(tmp_path/'last.safetensors', 'wb') as f:
        f.write(header)
        f.truncate(ENCODER_BYTES)
    run = load_run(tmp_path)
    assert run.recipe.family == 'encoder' and len(run.info['names']) == 31
    logits = run.nets['E'](torch.rand(2, 3, 32, 32)*2 - 1)
    assert torch.equal(logits, torch.zeros(2, 31)), 'all weights come from the file'
