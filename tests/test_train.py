"""What lessons 05 and 06 cannot show in a cell: interrupts, several processes, mapped images, every recipe, budgets in minutes."""
import json, math

import pytest
import torch

from pokegan.core import has_bf16, pick_device
from pokegan.data import Images
from pokegan.training.callbacks import read_log
from pokegan.training.checkpoint import CheckpointCB, read_tensors
from pokegan.training.health import diagnose
from pokegan.training.losses import PAIRS
from pokegan.training.trainer import Batch, Callback, Shuffle
from pokegan.models.dcgan import DCGAN_RECIPES
from pokegan.models.recipe import make_trainer
from pokegan.recipes import recipe
from pokegan.runs import load_run, resume, train

SMALL = dict(size=32, ngf=8, ndf=8, batch=8)


def noise(n=40, size=32, seed=0) -> Images:
    return Images(torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)), source='noise')


def tensors(run): return read_tensors(run/'state.safetensors')[0]


def flat(t): return torch.cat([p.detach().flatten() for m in t.nets.values() for p in m.parameters()])


@pytest.mark.parametrize('name', [r.name for r in DCGAN_RECIPES])
def test_every_recipe_trains_and_resumes_exactly(name, tmp_path):
    small = SMALL if name != 'dcgan-fc-128' else SMALL | dict(size=64)
    data = noise(size=small['size'])
    train(name, data, tmp_path/'whole', steps=6, progress=False, **small)
    train(name, data, tmp_path/'parts', steps=2, progress=False, **small)
    done = resume(tmp_path/'parts', steps=6, data=data, progress=False)
    a, b = tensors(tmp_path/'whole'), tensors(tmp_path/'parts')
    assert [k for k in a if not torch.equal(a[k], b[k])] == [] and a.keys() == b.keys()
    x = done.sample(4)
    assert x.shape == (4, 3, small['size'], small['size']) and x.abs().max() <= 1 and x.isfinite().all()


@pytest.mark.parametrize('loss', PAIRS)
@pytest.mark.parametrize('bf16', [False, True])
def test_every_loss_gives_finite_weights(loss, bf16):
    t = make_trainer(recipe('dcgan-quick', loss=loss, **SMALL), noise())
    t.bf16 = bf16
    before = flat(t)
    t.fit(steps=3)
    assert flat(t).isfinite().all() and not torch.equal(flat(t), before)


def test_clipping_and_rounds():
    t = make_trainer(recipe('dcgan-quick', loss='wgan', opt='rmsprop', clip=.01, d_rounds=3, ema=0., **SMALL), noise())
    t.fit(steps=2)
    assert max(p.abs().max() for p in t.nets['D'].parameters()) <= .01
    assert t.images_seen == 2*3*8


def test_two_processes_share_each_step_and_draw_other_latents(monkeypatch):
    "Ranks take neighbouring pieces of one stream, so together they see what one process with a doubled batch sees."
    def draw(rank, world):
        monkeypatch.setenv('RANK', str(rank))
        monkeypatch.setenv('WORLD_SIZE', str(world))
        t = make_trainer(recipe('dcgan-quick', **SMALL), noise())
        t.one_step()
        return t.batch
    one, two = draw(0, 2), draw(1, 2)
    assert not torch.equal(one.z, two.z)
    whole = Shuffle(40, one.t.shuffle.seed).take(0, 16)
    data = noise().x.float()/127.5 - 1
    assert torch.equal(torch.cat([one.x, two.x]), data[whole])


def test_a_later_round_sees_other_reals():
    t = make_trainer(recipe('dcgan-quick', d_rounds=2, **SMALL), noise())
    b, D = Batch(t), t.phases[0]
    b.enter(D); x, z = b.x, b.z
    b.enter(D)
    assert not torch.equal(b.x, x) and not torch.equal(b.z, z)


def test_interrupt_saves_and_says_so(tmp_path):
    class Interrupt(Callback):
        def after_step(self, t):
            if t.step == 3: raise KeyboardInterrupt
    t = make_trainer(recipe('dcgan-quick', **SMALL), noise())
    t.callbacks += [CheckpointCB(tmp_path/'r', dict(recipe={})), Interrupt()]
    t.fit(steps=100)
    info = json.loads((tmp_path/'r/run.json').read_text())
    assert t.stop == info['stopped'] == 'interrupted' and info['step'] == 3 == read_tensors(tmp_path/'r/state.safetensors')[1]['step']


def test_minutes_are_kept():
    t = make_trainer(recipe('dcgan-quick', **SMALL), noise()).fit(minutes=1/60)
    assert 1 <= t.seconds < 2 and t.step > 1


def test_trains_from_a_mapped_file(tmp_path):
    data = noise()
    data.save(tmp_path/'prepared')
    a = make_trainer(recipe('dcgan-quick', **SMALL), Images.open(tmp_path/'prepared')).fit(steps=2)
    b = make_trainer(recipe('dcgan-quick', **SMALL), data).fit(steps=2)
    assert torch.equal(flat(a), flat(b))


def test_global_randomness_is_left_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    make_trainer(recipe('dcgan-keras', **SMALL), noise()).fit(steps=1)
    assert torch.equal(torch.rand(3), want)


def test_log_and_run_agree(tmp_path):
    done = train('dcgan-quick', noise(), tmp_path/'r', steps=40, progress=False, **SMALL)
    rows = read_log(tmp_path/'r/log.csv')
    assert [r['step'] for r in rows] == [20, 40] and rows[-1]['images'] == 320 == done.info['images']
    assert all(math.isfinite(v) for r in rows for v in r.values())
    assert torch.equal(load_run(tmp_path/'r').sample(3, seed=1), done.sample(3, seed=1))


def test_one_line_each():
    for words, call in {'64': lambda: make_trainer(recipe('dcgan-quick'), noise()), 'dcgan-819': lambda: recipe('dcgan-820'), 'has no ngff': lambda: recipe('dcgan-819', ngff=3),
                        'cpu': lambda: pick_device('abacus'), 'budget': lambda: make_trainer(recipe('dcgan-quick', **SMALL), noise()).fit(),
                        'steps': lambda: make_trainer(recipe('dcgan-quick', **SMALL), noise()).fit(steps=0)}.items():
        with pytest.raises(ValueError, match=words) as e: call()
        assert '\n' not in str(e.value)
    assert isinstance(has_bf16(torch.device('cpu')), bool)


def test_diagnoses_name_their_lesson():
    from pathlib import Path
    worst = diagnose(share=0., acc=1., finite=True, lo=0., hi=1.) | diagnose(share=1., acc=.5, finite=False, lo=-1., hi=1.)
    assert set(worst) == {'collapse', 'D has won', 'range mismatch', 'NaN'}
    lessons = {p.stem for p in (Path(__file__).parent.parent/'nbs').glob('*.ipynb')}
    assert all(line.split('see lesson ')[1] in lessons for line in worst.values())
