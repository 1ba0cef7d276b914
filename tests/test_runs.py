"""Runs from outside: folders that are claimed, budgets in epochs, checkpoints that stay, devices and threads
that are chosen."""
import os
from types import SimpleNamespace

import fresh
import pytest
import torch

from pokegan import core, load_run, recipe, resume, runs, train
from pokegan.data import Images

TINY = dict(size=16, ngf=4, ndf=4, nz=4, batch=8)


def noise(n=40):
    g = torch.Generator().manual_seed(0)
    return Images(torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=g))


def test_two_trainings_begun_together_are_two_runs(tmp_path):
    noise().save(tmp_path/'data')
    words = 'train --data data --size 16 --steps 2 --recipe dcgan-quick:ngf=4,ndf=4'.split()
    both = [fresh.Command(words, tmp_path, os.environ) for _ in range(2)]
    ended = [p.end() for p in both]
    said = [p.stdout for p in ended]
    assert [p.returncode for p in ended] == [0, 0], [p.stderr for p in ended]
    assert sorted(p.name for p in (tmp_path/'runs').iterdir()) == ['dcgan-quick-1', 'dcgan-quick-2']
    for k in (1, 2):
        assert load_run(tmp_path/f'runs/dcgan-quick-{k}').info['step'] == 2
        assert sum(f'dcgan-quick-{k}' in s for s in said) == 1


def test_a_claimed_folder_is_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [runs.claim_folder('a').name for _ in range(3)] == ['a-1', 'a-2', 'a-3']
    with runs.new_folder('a', 'mine/own') as own: (own/'run.json').write_text('{}', encoding='utf-8')
    with pytest.raises(ValueError, match='already holds a run'), runs.new_folder('a', 'mine/own'): pass
    with runs.new_folder('b') as b: assert b.name == 'b-1'
    assert not b.exists(), 'nothing came of it'


def test_nothing_is_written_when_a_value_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = (dict(steps=0), dict(steps=1, data='nowhere'), dict(epochs=-1.), dict(steps=1, loss='hing'),
             dict(steps=1, keep_every=0), dict(steps=1, keep_epochs=.5), dict(steps=1, grid_epochs=-1))
    for kw in wrong:
        with pytest.raises(ValueError): train('dcgan-quick', kw.pop('data', noise()), progress=False, **kw)
    assert not list(tmp_path.iterdir())


def test_epochs_count_real_pictures(tmp_path):
    kw = dict(progress=False, device='cpu')
    run = train('dcgan-quick', noise(), tmp_path/'a', epochs=1.5, **kw, **TINY)
    assert run.info['step'] == 8, '60 pictures in batches of 8, the last step not cut'
    assert run.info['budget']['epochs'] == 1.5
    assert resume(tmp_path/'a', data=noise(), epochs=2, **kw).info['step'] == 10
    five = train('dcgan-quick', noise(), tmp_path/'b', epochs=1, d_rounds=2, loss='wgan', **kw, **TINY)
    assert five.info['step'] == 3, 'two draws of 8 a step'


def test_a_kept_checkpoint_draws_what_G_drew_then(tmp_path):
    kw = dict(progress=False, device='cpu', ema=.9)
    then = train('dcgan-quick', noise(), tmp_path/'a', steps=4, **kw, **TINY)
    train('dcgan-quick', noise(), tmp_path/'b', steps=6, keep_every=4, **kw, **TINY)
    done = resume(tmp_path/'b', data=noise(), steps=9, progress=False, device='cpu')
    names = sorted(p.name for p in (tmp_path/'b/kept').iterdir())
    assert names == ['0000004.safetensors', '0000008.safetensors']
    was = load_run(tmp_path/'b', step=4)
    assert was.info['step'] == 4
    assert torch.equal(was.sample(5, seed=1), then.sample(5, seed=1))
    assert not torch.equal(was.sample(5, seed=1), done.sample(5, seed=1))
    (tmp_path/'b/kept/0000012.safetensors').write_bytes(b'of a step that is lost')
    resume(tmp_path/'b', data=noise(), steps=11, progress=False, device='cpu')
    with pytest.raises(ValueError, match='no checkpoint of step 12; there are 4, 8, 11$'):
        load_run(tmp_path/'b', step=12)
    with pytest.raises(ValueError, match='not both'): load_run(tmp_path/'b', 'best', step=4)
    with pytest.raises(ValueError, match='step 3; there are 4; keep more by --keep-every'):
        load_run(tmp_path/'a', step=3)
    assert torch.equal(load_run(tmp_path/'a', step=4).sample(2), then.sample(2)), 'the last one counts'


def test_by_epochs(tmp_path):
    "40 pictures in batches of 8 are 5 steps; in batches of 16, 2.5."
    kw = dict(progress=False, device='cpu', keep_epochs=2, grid_epochs=1, epochs=4)
    train('dcgan-quick', noise(), tmp_path/'a', **kw, **TINY)
    assert sorted(p.stem for p in (tmp_path/'a').glob('kept/*')) == ['0000010-epoch0002', '0000020-epoch0004']
    assert load_run(tmp_path/'a', step=10).info['step'] == 10
    train('dcgan-quick', noise(), tmp_path/'b', **kw, **TINY | dict(batch=16))
    grids = ['0000001', '0000003-epoch0001', '0000005-epoch0002', '0000008-epoch0003', '0000010-epoch0004']
    assert sorted(p.stem for p in (tmp_path/'b').glob('samples/*')) == grids
    assert (tmp_path/'b/progress.gif').exists() and (tmp_path/'b/stages.png').exists()
    train('dcgan-quick', noise(5), tmp_path/'c', **kw, **TINY)
    grids = ['0000001-epoch0001', '0000002-epoch0003', '0000003-epoch0004']
    assert sorted(p.stem for p in (tmp_path/'c').glob('samples/*')) == grids, 'two epochs may end in one step'


def test_a_device_that_cannot_do_a_step_gives_way(monkeypatch, capsys):
    def one_step():
        raise NotImplementedError("The operator 'aten::_pdist_forward' is not implemented for MPS\nmore")
    monkeypatch.setattr(runs, 'make_trainer', lambda *a, **kw: SimpleNamespace(one_step=one_step))
    r = recipe('dcgan-quick', **TINY)
    assert runs.working_device(r, noise(), torch.device('mps')) == torch.device('cpu')
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and 'mps' in said and '_pdist_forward' in said
    assert runs.working_device(r, noise(), torch.device('cuda', 1)) == torch.device('cuda', 1)


def test_the_faster_count_of_threads_is_taken(monkeypatch, capsys):
    seconds, now = {1: 1., 2: 6.}, [2]
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: now[0])
    monkeypatch.setattr(torch, 'set_num_threads', lambda n: now.__setitem__(0, n))
    monkeypatch.setattr(core, 'convolution_seconds', seconds.get)
    monkeypatch.setattr(core.psutil, 'cpu_percent', lambda s: 90.)
    assert core.pick_threads() == 1 and now == [1]
    assert 'busy' in capsys.readouterr().out
    now[0], seconds[2] = 2, .6
    assert core.pick_threads() == 2
    assert core.pick_threads(told=1) == 1, 'a resumed run keeps its count'


def test_threads_are_measured_without_touching_the_random_numbers(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    state, most = torch.get_rng_state(), torch.get_num_threads()
    try: assert core.pick_threads() in (1, most)
    finally: torch.set_num_threads(most)
    assert torch.equal(state, torch.get_rng_state())
