"""Killed with SIGKILL at ten random moments and resumed, a run ends with the weights of one
that was never stopped, and with the same kept checkpoints and grids; a full disk costs nothing."""
import json, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from pokegan.training.callbacks import read_log
from pokegan.training.checkpoint import kept, read_tensors
from test_cli import refused

# One process imports torch once, then forks a child for each life of the run.
ZYGOTE = '''
import os, sys, time
sys.path.insert(0, sys.argv[1])
import fresh
fresh.prepare()
import torch
from pathlib import Path
from pokegan.data import Images
from pokegan.runs import resume, train

def live(folder, save_every):
    g = torch.Generator().manual_seed(0)
    images = Images(torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=g), source='noise')
    if (Path(folder)/'run.json').exists(): resume(folder, data=images, progress=False)
    else:
        train('dcgan-819', images, folder, steps=200, progress=False, save_every=save_every,
              keep_every=35, grid_epochs=9, size=32, ngf=8, ndf=8, batch=16, ema=.9)

for line in sys.stdin:
    folder, save_every = line.split()
    pid = os.fork()
    if pid == 0:
        try: live(folder, int(save_every)); os._exit(0)
        except BaseException as e: print(repr(e), file=sys.stderr); os._exit(1)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''


@pytest.fixture(scope='module')
def zygote():
    env = os.environ | dict(OMP_NUM_THREADS='1')
    p = subprocess.Popen([sys.executable, '-c', ZYGOTE, Path(__file__).parent], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True, env=env)
    yield p
    p.stdin.close()
    p.wait(30)


def start(p, folder, save_every=7) -> int:
    p.stdin.write(f'{folder} {save_every}\n')
    p.stdin.flush()
    return int(p.stdout.readline())


def test_killed_ten_times_ends_equal(zygote, tmp_path):
    start(zygote, tmp_path/'whole')
    t0 = time.perf_counter()
    while not (tmp_path/'whole/run.json').exists(): time.sleep(.01)
    startup = time.perf_counter() - t0
    assert int(zygote.stdout.readline()) == 0
    training = time.perf_counter() - t0 - startup
    rng, kills, at = random.Random(), 0, []  # really random: another ten moments at every run of this test
    while True:
        pid = start(zygote, tmp_path/'killed')
        if kills < 10:
            time.sleep(startup*rng.uniform(.8, 1.2) + training*rng.uniform(0, .08))
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: pass  # it was faster than expected and has ended
        code = int(zygote.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        state = tmp_path/'killed/state.safetensors'
        if state.exists(): at.append(read_tensors(state)[1]['step'])
        if code == 0: compare(tmp_path/'whole', tmp_path/'killed')
        if code == 0 and kills >= 10: break
        if code == 0: shutil.rmtree(tmp_path/'killed')
    print(f'steps of the last checkpoint after each kill: {at}')


def compare(whole, killed):
    (a, ma), (b, mb) = (read_tensors(p/'state.safetensors') for p in (whole, killed))
    assert ma['step'] == mb['step'] == 200 and a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert not list(killed.rglob('.*aside')), 'what killed processes left behind is swept up'
    rows = [[r['step'] for r in read_log(p/'log.csv')] for p in (whole, killed)]
    assert rows[0] == rows[1] == list(range(20, 201, 20))
    for files in ('kept/*', 'samples/*'):
        one, other = ({p.name: p.read_bytes() for p in at.glob(files)} for at in (whole, killed))
        assert one == other
    assert list(kept(killed)) == [35, 70, 105, 140, 175]
    grids = [p.stem for p in sorted(killed.glob('samples/*'))]
    assert grids[:2] == ['0000001', '0000040-epoch0009'] and grids[-1] == '0000200', '70 pictures, 16 a step'


def test_state_holds_the_last_good_step_when_killed_while_writing(zygote, tmp_path):
    "Checkpoints at every step, so that most kills fall into a write; each file must still open."
    rng, startup = random.Random(1), 0.
    for _ in range(6):
        pid = start(zygote, tmp_path/'run', save_every=1)
        t0 = time.perf_counter()
        while not (tmp_path/'run/run.json').exists(): time.sleep(.005)
        startup = startup or time.perf_counter() - t0
        time.sleep(max(0, startup - (time.perf_counter() - t0)) + rng.uniform(0, max(.3, startup/4)))
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass  # the run has ended already
        zygote.stdout.readline()
        for name in ('state', 'last'): assert read_tensors(tmp_path/f'run/{name}.safetensors')[0]
        assert json.loads((tmp_path/'run/run.json').read_text(encoding='utf-8'))['schema'] == 1
    assert read_tensors(tmp_path/'run/state.safetensors')[1]['step'] > 0


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 16 MiB."
    at = tmp_path/'small'
    at.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', at]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('a small tmpfs can only be mounted by root')
    yield at
    subprocess.run(['umount', at], check=True)


def test_full_disk_keeps_the_last_good_files(small_disk):
    run = small_disk/'run'
    code = f'''
import torch
torch.set_num_threads(1)
from pokegan.cli import main
from pokegan.runs import train
from pokegan.data import Images
x = torch.zeros(64, 3, 32, 32, dtype=torch.uint8) + torch.arange(64, dtype=torch.uint8).view(-1, 1, 1, 1)*4
images = Images(x, source='noise')
train('dcgan-819', images, {str(run)!r},
      steps=10, progress=False, save_every=5, size=32, ngf=8, ndf=8, batch=16)
'''
    subprocess.run([sys.executable, '-c', code], check=True)
    good = read_tensors(run/'state.safetensors')[1]['step']
    free = os.statvfs(small_disk)
    (small_disk/'ballast').write_bytes(bytes(max(0, free.f_bavail*free.f_frsize - 200_000)))
    code = code.replace("train('dcgan-819', images, ", 'from pokegan.runs import resume\nresume(')
    code = code.replace('steps=10, progress=False, save_every=5, size=32, ngf=8, ndf=8, batch=16)',
                        'steps=40, data=images, progress=False)')
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    last = p.stderr.strip().splitlines()[-1]
    assert p.returncode and 'disk full' in last and 'resume' in last
    assert good == 10 and read_tensors(run/'state.safetensors')[1]['step'] >= good
    assert read_tensors(run/'last.safetensors')[0]
    assert not list(Path(run).glob('.*aside'))
    (small_disk/'ballast').unlink()
    subprocess.run([sys.executable, '-c', code], check=True)
    assert read_tensors(run/'state.safetensors')[1]['step'] == 40


def test_a_full_disk_is_told_by_the_name_of_what_was_not_written(small_disk, tmp_path):
    said = refused('data', 'creatures:2000', '--out', small_disk/'many', cwd=tmp_path)
    assert f'disk full: {small_disk/"many"} was not written' in said
    assert 'free some space, then call again' in said and not (small_disk/'many').exists()
