"""Machines that are not here: a device that lacks what Apple's GPUs lack,
and Windows, where another program keeps a file open."""
import functools, gc, importlib, os, pkgutil, sys, time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import pokegan
from pokegan.core import replacing
from pokegan.data import Images, load_images
from pokegan.training.augment import HeldOutCB
from pokegan.training.callbacks import GridCB, LogCB, PictureCB, read_log
from pokegan.training.checkpoint import CheckpointCB, load_state, read_tensors, write_tensors
from pokegan.training.health import diversity, HealthCB
from pokegan.training.live import LiveCB
from pokegan.training.trainer import Callback, Trainer
from pokegan.metrics.features import extractor
from pokegan.metrics.tracking import CurvesCB
from pokegan.models.instance import CopiesCB
from pokegan.models.recipe import make_trainer
from pokegan.recipes import recipe
from pokegan.runs import resume, train

SMALL = dict(size=32, nz=12, ngf=4, ndf=4, batch=4)


# A device that lacks operators. There is no Apple here, so a tensor of the CPU says that it lies on DEVICE
# ('meta', a name that PyTorch knows and that nobody here uses). What MPS has no kernel for raises, as there;
# so do float64, and operands on two devices. `.cpu()` gives a plain tensor back.

DEVICE = torch.device('meta')
# These take operands of both.
ANYWHERE = {'_to_copy', 'copy_', 'index.Tensor', 'index_put_', '_index_put_impl_', '_unsafe_index_put'}


@functools.cache
def lacking() -> set:
    "Operators with a kernel for the CPU and none for MPS, from PyTorch's own table."
    yaml, torchgen = pytest.importorskip('yaml'), pytest.importorskip('torchgen')
    table = Path(torchgen.__file__).parent/'packaged/ATen/native/native_functions.yaml'
    if not table.exists(): pytest.skip('this PyTorch comes without the table of its operators')
    ops = {f['func'].split('(')[0]: f for f in yaml.safe_load(table.read_text(encoding='utf-8'))}

    def keys(name):
        own = {k.strip() for group in ops[name].get('dispatch', ()) for k in group.split(',')}
        return own | (keys(ops[name]['structured_delegate']) if 'structured_delegate' in ops[name] else set())

    def lacks(keys):
        composite = any(k.startswith('Composite') for k in keys)
        return 'CPU' in keys and 'MPS' not in keys and not composite
    return {name for name in ops if lacks(keys(name))}


class OnDevice(torch.Tensor):
    "Says that it lies on DEVICE; its numbers are those of `x`, on the CPU."
    @staticmethod
    def __new__(cls, x):
        if x.dtype in (torch.float64, torch.complex128):
            raise TypeError('Cannot convert a MPS Tensor to float64 dtype')
        how = dict(strides=x.stride(), storage_offset=x.storage_offset(), dtype=x.dtype, device=DEVICE)
        t = torch.Tensor._make_wrapper_subclass(cls, x.shape, **how)
        t.x = x
        return t

    def tolist(self): return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kw=None): return carry_out(op, args, kw or {})


def carry_out(op, args, kw):
    "The operator on the CPU; the result lies on DEVICE where the operands do, or where `device` says so."
    leaves, name = tree_leaves((args, kw)), op.name().removeprefix('aten::')
    mine = [v for v in leaves if isinstance(v, OnDevice)]
    here = bool(mine) if kw.get('device') is None else torch.device(kw['device']) == DEVICE
    if mine and name in lacking():
        raise NotImplementedError(f"The operator 'aten::{name}' is not implemented for MPS")
    others = [v for v in leaves if isinstance(v, torch.Tensor) and not isinstance(v, OnDevice) and v.ndim]
    if mine and others and name not in ANYWHERE:
        raise RuntimeError(f'{name}: all operands must lie on one device')
    args, kw = tree_map_only(OnDevice, lambda v: v.x, (args, kw))
    out = op(*args, **(kw | dict(device='cpu') if kw.get('device') is not None else kw))
    same = {id(v.x): v for v in mine}  # what was changed in place
    def back(v): return same[id(v)] if id(v) in same else OnDevice(v)
    return tree_map_only(torch.Tensor, back, out) if here else out


class Apple(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kw=None): return carry_out(op, args, kw or {})


class Generator(torch.Generator):
    def __new__(cls, device='cpu'):
        g = super().__new__(cls, 'cpu')
        g.where = torch.device(device)
        return g
    device = property(lambda self: self.where)


def moved(make):
    "`torch.tensor` asks nobody, it fills a tensor and moves it: here first the one, then the other."
    def f(data, *args, device=None, **kw):
        v = make(data, *args, **kw)
        return v if device is None else v.to(device)
    return f


@pytest.fixture
def apple(monkeypatch):
    "The best device that the library finds is DEVICE."
    lacking()
    monkeypatch.setattr(torch, 'Generator', Generator)
    for f in ('tensor', 'as_tensor'): monkeypatch.setattr(torch, f, moved(getattr(torch, f)))
    autocast = torch.autocast
    def cast(kind, *a, **kw): return nullcontext() if kind == DEVICE.type else autocast(kind, *a, **kw)
    monkeypatch.setattr(torch, 'autocast', cast)
    def pick(name=None): return torch.device(name or DEVICE)
    for name, m in list(sys.modules.items()):
        if name.startswith('pokegan') and hasattr(m, 'pick_device'):
            monkeypatch.setattr(m, 'pick_device', pick)
    with Apple(): yield


def test_the_table_is_pytorchs_own():
    assert '_pdist_forward' in lacking()
    assert not {'add.Tensor', 'mm', 'convolution', 'native_batch_norm', '_local_scalar_dense'} & lacking()


def test_the_device_refuses_what_apples_refuses(apple):
    x = torch.randn(5, 4).to(DEVICE)
    assert x.device == DEVICE and (x*2).relu().device == DEVICE and x.cpu().device.type == 'cpu'
    assert torch.equal((x + 1).cpu(), x.cpu() + 1)
    assert x.tolist() == x.cpu().tolist() and isinstance(x.sum().item(), float)
    with pytest.raises(NotImplementedError, match='_pdist_forward'): torch.pdist(x)
    assert torch.pdist(x.cpu()).shape == (10,)
    with pytest.raises(TypeError, match='float64'): x.double()
    assert x.cpu().double().dtype == torch.float64
    with pytest.raises(RuntimeError, match='one device'): x + torch.randn(5, 4)
    with pytest.raises((TypeError, RuntimeError)): x.numpy()


def test_diversity_needs_no_operator_that_the_device_lacks(apple):
    x = torch.rand(6, 3, 16, 16)
    assert diversity(x.to(DEVICE)) == diversity(x) > 0


def callbacks() -> set:
    "All that the library has."
    for m in pkgutil.iter_modules(pokegan.__path__):
        if not m.name.startswith('__'): importlib.import_module(f'pokegan.{m.name}')
    found, todo = set(), [Callback]
    while todo:
        todo += (more := todo.pop().__subclasses__())
        found |= {c for c in more if c.__module__.startswith('pokegan.')}
    return found


# The parameter is copied all the same.
QUIETLY = pytest.mark.filterwarnings('ignore:.*non-meta parameter in the checkpoint')


@QUIETLY
@pytest.mark.parametrize('name', ['dcgan-keras', 'dcgan-819', 'wgan-clip', 'wgan-gp', 'aegan-whole',
                                  'projected-instance'])
def test_a_step_on_a_device_like_apples(apple, name):
    few = dict(nc=5, resolution=32, w=2) if name == 'projected-instance' else {}
    t = make_trainer(recipe(name, **SMALL, **few), load_images('creatures:24', 32, progress=False))
    assert t.device == DEVICE
    assert all(isinstance(p, OnDevice) for m in t.nets.values() for p in m.parameters())
    before = [p.tolist() for p in t.nets['G'].parameters()]
    t.fit(steps=1)
    assert before != [p.tolist() for p in t.nets['G'].parameters()]
    assert all(torch.isfinite(v) for v in t.logs.values())


@QUIETLY
def test_every_callback_on_a_device_like_apples(apple, tmp_path, monkeypatch):
    seen, call = set(), Trainer.call
    def watched(t, hook):
        seen.update(type(cb) for cb in t.callbacks)
        return call(t, hook)
    monkeypatch.setattr(Trainer, 'call', watched)
    images = load_images('creatures:48', 32, progress=False)

    def run(name, **changes): train(name, images, tmp_path/name, steps=2, **SMALL | changes)
    run('dcgan-small-data')
    run('aegan-quick', track='random')
    run('pokegan2-msg', nz=512, components=5)  # three trainings: an encoder, a first one for G, the game
    run('projected', lr_decay=.5, resolution=32)

    t = make_trainer(recipe('dcgan-quick', **SMALL), images)  # and those that are due every so many steps
    G, look, drawn = t.nets['G'], extractor('random'), []
    t.callbacks += [HealthCB(G, t.prior, every=1, n=8), HeldOutCB(images, every=1, n=8),
                    CurvesCB(G, t.prior, images, look, n=8, share=.9, every=1),
                    CopiesCB(tmp_path, G, t.prior, images, look, .5, n=8, share=.9, every=1),
                    LogCB(tmp_path, every=1), LiveCB(G, t.prior, seconds=0., show=drawn.append)]
    t.fit(steps=2)
    logged = {k for r in read_log(tmp_path/'log.csv') for k in r}
    assert {'diversity', 'seen/real', 'fid', 'memorised'} <= logged and drawn
    assert (tmp_path/'aegan-quick/best.safetensors').exists(), 'KID was measured'
    unseen = {c.__name__ for c in callbacks() - seen}
    assert unseen == {'DistributedCB'}, 'for several processes, which Apple has not'


# Windows: a file that another program has open, or that this one has mapped into memory, is not replaced.

@pytest.fixture
def hold(monkeypatch):
    """hold(name, n): the next n attempts to replace a file of that name are refused.
    `hold.waits`: seconds that were slept."""
    left, replace = {}, os.replace
    def windows(old, new):
        name = Path(new).name
        if left.get(name, 0) > 0:
            left[name] -= 1
            raise PermissionError(13, 'Access is denied')
        replace(old, new)
    def hold(name, n=10**9): left[name] = n
    hold.waits = []
    monkeypatch.setattr(os, 'replace', windows)
    monkeypatch.setattr(time, 'sleep', hold.waits.append)
    return hold


def write(path, text, **kw):
    with replacing(path, **kw) as p: p.write_text(text, encoding='utf-8')


def read(path): return path.read_text(encoding='utf-8')


@pytest.mark.parametrize('n', [1, 3, 5])
def test_a_file_held_for_a_moment_is_waited_for(hold, tmp_path, capsys, n):
    write(tmp_path/'a', 'old')
    hold('a', n)
    write(tmp_path/'a', 'new', must=n > 1)
    assert read(tmp_path/'a') == 'new' and [p.name for p in tmp_path.iterdir()] == ['a']
    assert not capsys.readouterr().out
    assert sum(hold.waits) == pytest.approx(.2*n)


def test_a_file_held_for_long_stays_and_the_new_one_lies_beside_it(hold, tmp_path, capsys):
    write(tmp_path/'a', 'old')
    hold('a')
    write(tmp_path/'a', 'new')
    assert read(tmp_path/'a') == 'old' and read(tmp_path/'a.new') == 'new'
    assert sum(hold.waits) == pytest.approx(1)
    line, = capsys.readouterr().out.splitlines()
    assert str(tmp_path/'a') in line and 'a.new' in line
    write(tmp_path/'a', 'newer')
    assert read(tmp_path/'a.new') == 'newer'
    assert sum(hold.waits) == pytest.approx(1), 'it is not waited for twice'
    assert not capsys.readouterr().out, 'said once'
    hold('a', 0)
    write(tmp_path/'a', 'newest')
    assert read(tmp_path/'a') == 'newest' and [p.name for p in tmp_path.iterdir()] == ['a']


def test_what_must_be_written_raises_one_line(hold, tmp_path):
    write_tensors(tmp_path/'a.safetensors', dict(x=torch.zeros(2)), step=1)
    hold('a.safetensors')
    with pytest.raises(PermissionError) as e:
        write_tensors(tmp_path/'a.safetensors', dict(x=torch.ones(2)), step=2)
    assert 'a.safetensors.new' in e.value.strerror and '\n' not in e.value.strerror
    assert read_tensors(tmp_path/'a.safetensors')[1] == dict(step=1)
    assert read_tensors(tmp_path/'a.safetensors.new')[1] == dict(step=2)
    assert not list(tmp_path.glob('.*')), 'nothing is left aside'


def test_a_folder_that_may_not_be_written_is_no_matter_of_waiting(hold, tmp_path):
    with pytest.raises(PermissionError, match='mine'):
        with replacing(tmp_path/'a'): raise PermissionError('mine')
    assert not hold.waits


def game(folder, steps, *others, **kw):
    t = make_trainer(recipe('dcgan-quick', **SMALL), noise(), device='cpu')
    t.callbacks += [LogCB(folder, every=1, **kw), *others]
    if (folder/'state.safetensors').exists(): load_state(t, folder/'state.safetensors')
    return t.fit(steps=steps)


def noise(n=24):
    g = torch.Generator().manual_seed(0)
    return Images(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), source='noise')


def steps(path): return [r['step'] for r in read_log(path)]


def test_training_goes_on_while_a_spreadsheet_holds_the_log(hold, tmp_path, capsys):
    game(tmp_path, 2, CheckpointCB(tmp_path))
    hold('log.csv')
    game(tmp_path, 5, CheckpointCB(tmp_path, every=1), seconds=0)
    with open(tmp_path/'log.csv', encoding='utf-8') as f:
        assert len(f.readlines()) == 3, 'a head and two rows, as it was'
    assert steps(tmp_path/'log.csv') == [1, 2, 3, 4, 5]
    assert capsys.readouterr().out.count('log.csv') == 2, 'one line, both names'
    hold('log.csv', 0)
    game(tmp_path, 7, CheckpointCB(tmp_path))
    assert not (tmp_path/'log.csv.new').exists() and steps(tmp_path/'log.csv') == [1, 2, 3, 4, 5, 6, 7]


def test_rows_are_written_at_the_next_chance(hold, tmp_path):
    class Seen(Callback):
        def after_step(self, t):
            if t.step == 2: hold('log.csv')
            if t.step == 4: hold('log.csv', 0)
            there.append((tmp_path/'log.csv.new').exists())
    there = []
    t = make_trainer(recipe('dcgan-quick', **SMALL), noise(), device='cpu')
    t.callbacks += [LogCB(tmp_path, every=1, seconds=0), Seen()]
    t.fit(steps=6)
    assert there == [False, False, True, True, False, False]
    assert steps(tmp_path/'log.csv') == [1, 2, 3, 4, 5, 6]


def test_training_goes_on_while_a_viewer_holds_a_picture(hold, tmp_path, capsys):
    t = make_trainer(recipe('dcgan-quick', **SMALL), noise(), device='cpu')
    t.callbacks += [GridCB(tmp_path, t.nets['G'], t.prior, n=4, frames=2), LogCB(tmp_path, every=1),
                    PictureCB(tmp_path)]
    names = ('0000002.png', 'losses.png', 'progress.gif')
    for name in names: hold(name)
    t.fit(steps=4)
    out = capsys.readouterr().out
    assert all(out.count(name) == 2 for name in names)
    assert len(out.splitlines()) == 3
    assert (tmp_path/'samples/0000004.png').exists() and (tmp_path/'losses.png.new').exists()


@pytest.mark.parametrize('name', ['state.safetensors', 'last.safetensors', 'run.json'])
def test_a_checkpoint_is_not_lost_unnoticed(hold, tmp_path, name):
    game(tmp_path, 2, CheckpointCB(tmp_path, every=1))
    hold(name, 4)
    game(tmp_path, 4, CheckpointCB(tmp_path, every=1))
    assert read_tensors(tmp_path/'state.safetensors')[1]['step'] == 4, 'held for less than a second'
    hold(name)
    with pytest.raises(PermissionError, match=f'{name}.*{name}.new'):
        game(tmp_path, 6, CheckpointCB(tmp_path, every=1))
    hold(name, 0)
    game(tmp_path, 6, CheckpointCB(tmp_path, every=1))
    assert read_tensors(tmp_path/'state.safetensors')[1]['step'] == 6 and not list(tmp_path.glob('*.new'))


def mapped(path):
    "Is the file part of this process's memory?"
    return str(path) in Path('/proc/self/maps').read_text(encoding='utf-8')


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='Linux tells which files are mapped')
def test_nothing_that_was_loaded_hangs_on_to_its_file(tmp_path):
    path = tmp_path/'state.safetensors'
    was = game(tmp_path, 2, CheckpointCB(tmp_path))
    with safe_open(path, 'pt') as f: views = [f.get_tensor(k) for k in f.keys()]
    assert mapped(path), 'the test can tell'
    del views
    gc.collect()
    assert not mapped(path)
    t = make_trainer(recipe('dcgan-quick', **SMALL), noise(), device='cpu')
    load_state(t, path)
    tensors, _ = read_tensors(path)
    assert not mapped(path)
    for p, q in zip(was.phases, t.phases):
        a, b = p.opt.state_dict()['state'], q.opt.state_dict()['state']
        same = (torch.equal(v, b[i][k]) for i, s in a.items() for k, v in s.items())
        assert a and all(same), 'and it is all there'
    assert len({v.untyped_storage().data_ptr() for v in tensors.values()}) == len(tensors)


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='Linux tells which files are mapped')
def test_a_resumed_run_can_replace_its_state_on_windows(tmp_path, monkeypatch):
    train('dcgan-quick', noise(), tmp_path/'run', steps=2, device='cpu', progress=False, **SMALL)
    replace = os.replace
    def windows(old, new):
        if mapped(new): raise PermissionError(13, 'Access is denied')
        replace(old, new)
    monkeypatch.setattr(os, 'replace', windows)
    resume(tmp_path/'run', steps=4, data=noise(), device='cpu', progress=False)
    assert read_tensors(tmp_path/'run/state.safetensors')[1]['step'] == 4
