"""Learning rates are functions of progress: right values, the same after a resume, a ratio that stays."""
from functools import partial

import pytest
import torch
from torch import nn

from pokegan.data import Images
from pokegan.training.checkpoint import load_state, save_state
from pokegan.training.schedules import cosine, linear, ScheduleCB
from pokegan.training.trainer import adam, Callback, Phase, Trainer


def test_factors():
    assert [round(cosine(p, .2), 6) for p in (0, .1, .2, .6, 1, 2)] == [0, .5, 1, .5, 0, 0]
    assert cosine(.5, 0) == pytest.approx(.5)
    assert [linear(p, .5) for p in (0, .5, .75, 1, 2)] == [1, 1, .5, 0, 0]


class KeepCB(Callback):
    order = 1
    def __init__(self, stop=None): self.rates, self.stop = [], stop
    def after_step(self, t):
        self.rates.append([p.opt.param_groups[0]['lr'] for p in t.phases])
        if t.step == self.stop: t.stop = 'enough'


def game(*callbacks): # two players with rates of .1 and .01
    torch.manual_seed(0)
    nets = dict(A=nn.Linear(12, 1), B=nn.Linear(12, 1))
    def phase(k, lr):
        def loss(b): return nets[k](b.x.flatten(1)).square().mean(), {}
        return Phase(k, (nets[k],), adam(nets[k], lr=lr), loss)
    x = torch.randint(0, 256, (40, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    phases = [phase('A', .1), phase('B', .01)]
    return Trainer(nets, phases, Images(x), None, 8, callbacks=callbacks, device='cpu')


def test_rates_follow_progress_and_keep_their_ratio():
    keep = KeepCB()
    t = game(ScheduleCB(partial(cosine, warmup=.2), least=1e-3), keep).fit(steps=10)
    want = [max(1e-3, cosine(i/10, .2)) for i in range(1, 11)]
    assert [r[0] for r in keep.rates] == pytest.approx([.1*w for w in want])
    assert [r[1] for r in keep.rates] == pytest.approx([.01*w for w in want])
    assert t.metrics['lr'] == pytest.approx(1e-4)


def test_a_resume_in_the_fall_is_exact(tmp_path):
    falls = partial(linear, share=.6)
    whole, parts = KeepCB(), KeepCB(stop=6)
    a = game(ScheduleCB(falls), whole).fit(steps=10)
    b = game(ScheduleCB(falls), parts).fit(steps=10)
    save_state(b, tmp_path/'state.safetensors')
    rest = KeepCB()
    c = game(ScheduleCB(falls), rest)
    load_state(c, tmp_path/'state.safetensors')
    c.fit(steps=10)
    assert parts.rates + rest.rates == whole.rates
    for k in 'AB': assert torch.equal(a.nets[k].weight, c.nets[k].weight)
