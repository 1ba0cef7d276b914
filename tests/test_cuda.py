"""What only a GPU can show: every family trains there, no step waits for it, numbers are those of the CPU,
and BatchNorm over two processes is that of one.

Without one all of this is skipped. Run as a script this file is one of the two processes that share a GPU."""
import os, socket, subprocess, sys

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from pokegan.data import load_images
from pokegan.metrics.coverage import labelled_creatures
from pokegan.models.recipe import make_trainer
from pokegan.recipes import recipe
from pokegan.runs import load_run, resume, train
from pokegan.cli import app
from test_processes import SMALL, Recorder, Rows, far, noise
from pokegan.training.distributed import DistributedCB

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
GAMES = ['dcgan-keras', 'dcgan-uniform', 'wgan-clip', 'wgan-gp', 'dcgan-fc-64', 'dcgan-819', 'dcgan-quick',
         'dcgan-small-data', 'aegan', 'aegan-quick', 'projected', 'projected-instance']
FINE = 'pokegan2-dcgan pokegan2-wgan pokegan2-wgangp pokegan2-msg'.split()


@pytest.fixture(scope='module')
def images(): return load_images('creatures:256', 64)


@pytest.mark.parametrize('name', GAMES + FINE)
def test_trains_without_waiting(images, name):
    "Three steps to warm up, then three in which PyTorch raises wherever the CPU would wait for the GPU."
    if name.startswith('projected'): pytest.importorskip('efficientnet_lite_pytorch')
    changes = {} if name in FINE else dict(size=64)
    t = make_trainer(recipe(name, **changes), images, device='cuda')
    before = {k: v.clone() for k, v in t.nets['G'].state_dict().items()}
    for _ in range(3): t.one_step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(3): t.one_step()
    finally: torch.cuda.set_sync_debug_mode('default')
    assert t.bf16 and all(torch.isfinite(v).all() for v in t.logs.values())
    assert any(not torch.equal(v, before[k]) for k, v in t.nets['G'].state_dict().items())


@pytest.mark.parametrize('name', ['dcgan-819', 'dcgan-quick', 'aegan', 'pokegan2-msg', 'projected'])
def test_same_pictures_as_on_the_cpu(name):
    r = recipe(name)
    nets = r.networks(0)
    G, z = nets['G'].eval(), r.prior(nets)(8, torch.Generator().manual_seed(0))
    was, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        with torch.no_grad(): there, here = G.cuda()(z.cuda()).cpu(), G.cpu()(z)
    finally: torch.backends.cudnn.allow_tf32 = was
    torch.testing.assert_close(there, here, atol=2e-5, rtol=0)


RESUMED = ['dcgan-quick', 'dcgan-small-data', 'aegan-quick', 'projected', 'projected-instance']


@pytest.mark.parametrize('name', RESUMED)
def test_run_folder_and_resume(images, tmp_path, name):
    "A run that is trained, left, continued and opened, all callbacks at work; loaded on the CPU in the end."
    if name.startswith('projected'): pytest.importorskip('efficientnet_lite_pytorch')
    train(name, images, tmp_path/'run', steps=30, progress=False)
    run = resume(tmp_path/'run', steps=60, data=images, progress=False)
    assert run.info['step'] == 60 and run.info['device'].startswith('cuda') and run.info['bf16']
    assert [r['step'] for r in run.log][-1] == 60 and run.log[-1]['vram'] > 0
    assert run.sample(4).device.type == 'cpu' and torch.isfinite(run.sample(4)).all()


def test_encoder_and_the_three_steps(tmp_path):
    "PokeGAN-2.0 from nothing to pictures."
    herd_of = labelled_creatures(640, list(range(0, 1000, 50)), size=64)
    run = train('pokegan2-msg', herd_of, tmp_path/'run', steps=20, progress=False, components=8)
    there = {p.name for p in (tmp_path/'run').iterdir()}
    assert there >= {'encoder', 'pretrain', 'last.safetensors', 'samples'}
    assert torch.isfinite(run.sample(4)).all()


def test_tracked(images, tmp_path):
    pytest.importorskip('efficientnet_lite_pytorch')
    run = train('dcgan-quick', images, tmp_path/'run', minutes=.3, progress=False, track='effnet-lite0')
    assert any('kid' in r for r in run.log) and load_run(tmp_path/'run', 'best').info['step'] > 0


def test_command_line(tmp_path):
    from typer.testing import CliRunner
    where = ['--run', str(tmp_path/'run'), '--device', 'cuda']
    out = CliRunner().invoke(app, ['train', '--steps', '10', '--data', 'creatures:64', *where])
    assert out.exit_code == 0, out.output


# ---- two processes on one GPU: gloo carries the tensors, because NCCL wants a GPU for each ----

def job(folder, batch):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if int(os.environ['WORLD_SIZE']) > 1: dist.init_process_group('gloo')
    r = recipe('dcgan-quick', **SMALL | dict(norm='batch', batch=batch, lr=0.))
    t = make_trainer(r, noise(), device='cuda')
    prior = Rows(r.nz)
    t.prior = lambda n, generator: prior(n, generator).cuda()
    t.callbacks = [DistributedCB([*t.callbacks, Recorder(folder)])]
    t.fit(2)
    if dist.is_initialized():
        assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in t.nets['G'].modules())
        dist.destroy_process_group()


def test_batch_norm_over_two_processes(tmp_path):
    "What differs on CPU cores (test_processes) is equal here: SyncBatchNorm sees both halves."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    for world, batch in ((1, 16), (2, 8)):
        env = os.environ | dict(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE='1', LOCAL_RANK='0')
        env |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
        command = [sys.executable, __file__, str(tmp_path), str(batch)]
        ps = [subprocess.Popen(command, env=env | dict(RANK=str(k)), stderr=subprocess.PIPE, text=True)
              for k in range(world)]
        errors = [p.communicate(timeout=180)[1] for p in ps]
        assert not any(p.returncode for p in ps), errors[0][-2000:]
    one, two = (load_file(tmp_path/f'{w}.safetensors') for w in ('1-0', '2-0'))
    assert max(far(two, one).values()) < 1e-3


def test_nccl_alone(tmp_path):
    "One process, the real backend: an all-reduce and an object from process 0."
    code = """if True:
        import torch, torch.distributed as dist
        dist.init_process_group('cpu:gloo,cuda:nccl')
        v, box = torch.ones(3, device='cuda'), ['a']
        dist.all_reduce(v)
        dist.broadcast_object_list(box, device=torch.device('cpu'))
        assert v.sum() == 3 and box == ['a']
        dist.destroy_process_group()"""
    env = os.environ | dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0')
    env |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT='29713')
    subprocess.run([sys.executable, '-c', code], env=env, check=True, timeout=120)


if __name__ == '__main__': job(sys.argv[1], int(sys.argv[2]))
