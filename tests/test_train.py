"""What lessons 05 and 06 cannot show in a cell: interrupts, several processes, mapped images, every recipe,
budgets in minutes."""
import json, math, signal, sys
from pathlib import Path

import pytest
import torch

from pokegan.core import has_bf16, pick_device
from pokegan.data import Images
from pokegan.training.callbacks import LoadCB, LogCB, ProgressCB, read_log
from pokegan.training.checkpoint import CheckpointCB, kept, read_tensors
from pokegan.training.health import diagnose
from pokegan.training.losses import PAIRS
from pokegan.training.stopping import StopCB
from pokegan.training.trainer import Batch, Callback, Shuffle
from pokegan.models.dcgan import DCGAN_RECIPES
from pokegan.models.recipe import make_trainer
from pokegan.recipes import recipe
from pokegan.runs import load_run, resume, train

SMALL = dict(size=32, ngf=8, ndf=8, batch=8)


def noise(n=40, size=32, seed=0) -> Images:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=rng)
    return Images(x, source='noise')


def quick(images=None, **changes):
    r = recipe('dcgan-quick', **SMALL | changes)
    return make_trainer(r, images or noise())


def weights(t):
    every = [p.detach().flatten() for m in t.nets.values() for p in m.parameters()]
    return torch.cat(every)


@pytest.mark.parametrize('name', [r.name for r in DCGAN_RECIPES])
def test_every_recipe_trains_and_resumes_exactly(name, tmp_path):
    size = 64 if name == 'dcgan-fc-128' else 32
    data, small = noise(size=size), SMALL | dict(size=size)
    train(name, data, tmp_path/'whole', steps=6, progress=False, **small)
    train(name, data, tmp_path/'parts', steps=2, progress=False, **small)
    done = resume(tmp_path/'parts', steps=6, data=data, progress=False)
    a, b = (read_tensors(tmp_path/run/'state.safetensors')[0] for run in ('whole', 'parts'))
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    x = done.sample(4)
    assert x.shape == (4, 3, size, size)
    assert x.abs().max() <= 1 and x.isfinite().all()


@pytest.mark.parametrize('loss', PAIRS)
@pytest.mark.parametrize('bf16', [False, True])
def test_every_loss_gives_finite_weights(loss, bf16):
    t = quick(loss=loss)
    t.bf16 = bf16
    before = weights(t)
    t.fit(steps=3)
    assert weights(t).isfinite().all()
    assert not torch.equal(weights(t), before)


def test_clipping_and_rounds():
    t = quick(loss='wgan', opt='rmsprop', clip=.01, d_rounds=3, ema=0.)
    t.fit(steps=2)
    norms = [m for m in t.nets['D'].modules() if isinstance(m, torch.nn.BatchNorm2d)]
    gains = {id(m.weight) for m in norms}
    clipped = [p for p in t.nets['D'].parameters() if id(p) not in gains]
    assert max(p.abs().max() for p in clipped) <= .01
    assert min(m.weight.min() for m in norms) > .5 # gains stay, or variances would sink to nothing
    assert t.images_seen == 2*3*8


def test_two_processes_share_each_step_and_draw_other_latents(monkeypatch):
    "Ranks take neighbouring pieces of one stream, so together they see what one with a doubled batch sees."
    def draw(rank, world):
        monkeypatch.setenv('RANK', str(rank))
        monkeypatch.setenv('WORLD_SIZE', str(world))
        t = quick()
        t.one_step()
        return t.batch
    one, two = draw(0, 2), draw(1, 2)
    assert not torch.equal(one.z, two.z)
    both = Shuffle(40, one.t.shuffle.seed).take(0, 16)
    data = noise().x.float()/127.5 - 1
    assert torch.equal(torch.cat([one.x, two.x]), data[both])


def test_a_later_round_sees_other_reals():
    t = quick(d_rounds=2)
    b, D = Batch(t), t.phases[0]
    b.enter(D)
    x, z = b.x, b.z
    b.enter(D)
    assert not torch.equal(b.x, x)
    assert not torch.equal(b.z, z)


class InterruptCB(Callback):
    def after_step(self, t):
        if t.step == 3: signal.raise_signal(signal.SIGINT)


def watched(t): # (latents of each pass through G, does it teach G?), and the numbers of each batch of reals
    passes, reals = [], []
    def hook(G, args, out): passes.append((args[0].sum().item(), out.requires_grad))
    t.nets['G'].register_forward_hook(hook)
    load = t.reals
    def watch(idx):
        reals.append(tuple(idx.tolist()))
        return load(idx)
    t.reals = watch
    t.one_step()
    return passes, reals


@pytest.mark.parametrize('redraw, latents, n_reals, teaching', [
    ('batch', [1, 2, 3], 3, [True, True, True]), # G plays those of D's last move, one pass for both
    ('move', [1, 2, 3, 4], 3, [False, False, False, True]),
    ('step', [1], 3, [True])]) # one pass for all four moves
def test_when_latents_are_drawn(redraw, latents, n_reals, teaching):
    passes, reals = watched(quick(d_rounds=3, redraw=redraw))
    zs, taught = zip(*passes)
    assert [1 + sorted(set(zs), key=zs.index).index(z) for z in zs] == latents
    assert list(taught) == teaching
    assert len(set(reals)) == n_reals


@pytest.mark.parametrize('redraw, n_passes, n_reals', [('move', 3, 1), ('batch', 2, 2)])
def test_rounds_of_system_1_share_their_reals_and_no_latents(redraw, n_passes, n_reals):
    t = quick(split_d=True, d_rounds=2, redraw=redraw)
    passes, reals = watched(t)
    assert len({z for z, _ in passes}) == len(passes) == n_passes
    assert len(set(reals)) == n_reals and t.images_seen == 8*n_reals


def test_system_1_can_smooth_its_targets():
    def loss(**kw):
        t = quick(split_d=True, amp=False, **kw)
        t.one_step()
        return {k: float(v) for k, v in t.logs.items()}
    plain, smooth = loss(), loss(real_target=.9, fake_target=.2)
    assert smooth['D_fake/loss'] - plain['D_fake/loss'] == pytest.approx(-.2*plain['D_fake/fake'], abs=1e-5)
    with pytest.raises(ValueError, match='flip'): recipe('dcgan-keras', flip=.1)


def test_rmsprop_forgets_at_the_rate_that_is_asked_for():
    clip, quick = recipe('wgan-clip', **SMALL), recipe('dcgan-quick', **SMALL, opt='rmsprop')
    for r, decay in ((clip, .9), (quick, .99)):
        for p in r.phases(r.networks(0)): assert p.opt.param_groups[0]['alpha'] == decay


def test_contrast_is_taken_around_each_pictures_own_mean():
    change = recipe('dcgan-uniform', hflip=False, brightness=0., contrast=.5).change_reals()
    x = .3*torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = x + torch.tensor([.5, 0, -.6])[:, None, None]
    y = change(x, torch.Generator().manual_seed(1))
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)))
    factor = y.std((2, 3))/x.std((2, 3)) # one for each picture
    assert (factor.std(1) < 1e-5).all() and factor.min() >= .5 and factor.max() <= 1.5
    assert factor.mean(1).std() > .01


def test_interrupt_saves_and_says_so(tmp_path):
    t = quick()
    with StopCB() as stop:
        t.callbacks += [InterruptCB(), stop, CheckpointCB(tmp_path/'r', dict(recipe={}))]
        t.fit(steps=100)
    info = json.loads((tmp_path/'r/run.json').read_text(encoding='utf-8'))
    _, meta = read_tensors(tmp_path/'r/state.safetensors')
    assert t.stop == info['stopped'] == 'interrupted'
    assert info['step'] == 3 == meta['step']


def test_an_interrupted_step_is_kept_and_a_broken_one_is_not(tmp_path):
    t = quick()
    with StopCB() as stop:
        t.callbacks += [InterruptCB(), CheckpointCB(tmp_path/'r', dict(recipe={}), keep=3), stop]
        t.fit(steps=100)
    assert list(kept(tmp_path/'r')) == [3]
    t.nets['G'].requires_grad_(False).eval()
    next(t.nets['G'].parameters()).fill_(float('nan'))
    del t.callbacks[0], t.callbacks[-1]
    t.fit(steps=6)
    assert list(kept(tmp_path/'r')) == [3]
    assert all(v.isfinite().all() for v in read_tensors(kept(tmp_path/'r')[3])[0].values())


class PretendedGPU:
    "What LoadCB asks of a trainer, on a device that this machine lacks."
    device, step, seconds = torch.device('cuda', 0), 0, 0.
    def __init__(self): self.metrics = {}


def test_gpu_load_is_what_the_driver_says_and_read_for_rows_alone(monkeypatch):
    asked = []
    def utilization(device): asked.append(t.step); return 37
    monkeypatch.setattr(torch.cuda, 'utilization', utilization)
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda device: 2**29)
    t, cb = PretendedGPU(), LoadCB(seconds=5, every=20)
    cb.before_fit(t)
    for t.step in range(1, 101):
        t.seconds += .2 # a row every 4 s, so every other one is due
        cb.after_step(t)
    assert asked == [20, 60, 100]
    assert t.metrics['gpu'] == 37 and t.metrics['vram'] == .5


@pytest.mark.parametrize('e', [ModuleNotFoundError('pynvml'), RuntimeError('no driver'), AttributeError()])
def test_gpu_load_is_left_out_where_nobody_tells(e, monkeypatch):
    def utilization(device): raise e
    monkeypatch.setattr(torch.cuda, 'utilization', utilization)
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda device: 0)
    t, cb = PretendedGPU(), LoadCB()
    cb.after_step(t)
    assert t.metrics.keys() == {'cpu', 'ram', 'vram'}


def test_load_is_in_the_log(tmp_path):
    t = quick()
    t.callbacks += [LoadCB(), LogCB(tmp_path)]
    t.fit(steps=20)
    assert {'cpu', 'ram'} <= read_log(tmp_path/'log.csv')[0].keys()


def test_minutes_are_kept():
    t = quick().fit(minutes=1/60)
    assert 1 <= t.seconds < 2
    assert t.step > 1


def test_trains_from_a_mapped_file(tmp_path):
    data = noise()
    data.save(tmp_path/'prepared')
    a = quick(Images.open(tmp_path/'prepared')).fit(steps=2)
    b = quick(data).fit(steps=2)
    assert torch.equal(weights(a), weights(b))


def test_global_randomness_is_left_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    make_trainer(recipe('dcgan-keras', **SMALL), noise()).fit(steps=1)
    assert torch.equal(torch.rand(3), want)


def test_log_and_run_agree(tmp_path):
    done = train('dcgan-quick', noise(), tmp_path/'r', steps=40, progress=False, **SMALL)
    rows = read_log(tmp_path/'r/log.csv')
    assert [r['step'] for r in rows] == [20, 40]
    assert rows[-1]['images'] == 320 == done.info['images']
    assert all(math.isfinite(v) for r in rows for v in r.values())
    again = load_run(tmp_path/'r')
    assert torch.equal(again.sample(3, seed=1), done.sample(3, seed=1))


@pytest.mark.parametrize('call, words', [
    (lambda: make_trainer(recipe('dcgan-quick'), noise()), '64'),
    (lambda: recipe('dcgan-820'), 'dcgan-819'),
    (lambda: recipe('dcgan-819', ngff=3), 'has no ngff'),
    (lambda: pick_device('abacus'), 'cpu'),
    (lambda: quick().fit(), 'budget'),
    (lambda: quick().fit(steps=0), 'steps')])
def test_one_line_each(call, words):
    with pytest.raises(ValueError, match=words) as e: call()
    assert '\n' not in str(e.value)


def test_whether_the_processor_has_bfloat16_is_yes_or_no():
    assert isinstance(has_bf16(torch.device('cpu')), bool)


def test_diagnoses_name_their_lesson():
    worst = diagnose(share=0., acc=1., finite=True, lo=0., hi=1.)
    worst |= diagnose(share=1., acc=.5, finite=False, lo=-1., hi=1.)
    assert set(worst) == {'collapse', 'D has won', 'range mismatch', 'NaN'}
    notebooks = Path(__file__).parent.parent/'nbs'
    lessons = {p.stem for p in notebooks.glob('*.ipynb')}
    for line in worst.values(): assert line.split('see lesson ')[1] in lessons


def test_without_a_terminal_a_line_a_minute_and_none_twice(monkeypatch, capsys):
    t, told = quick(), ProgressCB()
    monkeypatch.delitem(sys.modules, 'ipykernel', raising=False)
    class Slow(Callback):
        def after_step(self, t): t.seconds += 25 # as if a step took so long; told at 75 and at 150
    t.callbacks += [Slow(), told]
    t.fit(steps=6)
    lines = capsys.readouterr().err.strip().split('\n')
    assert [l.split(' of ')[0] for l in lines] == ['step 3', 'step 6']
    assert 'step 6 of 6' in lines[-1] and '0.0 min left' in lines[-1]
