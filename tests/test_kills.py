"""Every family, killed with SIGKILL at random moments and in the middle of writing each file, ends with the
bits of a run that was never stopped. KILLS=40 python -m pytest tests/test_kills.py kills each so often."""
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from pokegan.training.callbacks import read_log
from pokegan.training.checkpoint import read_tensors

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='one process is forked for each life')
KILLS = int(os.environ.get('KILLS', 2))
TINY = 'size=32,ngf=4,ndf=4,nz=8,batch=4,amp=no'
FAMILIES = {  # recipe -> how many steps
    f'dcgan-small-data:{TINY}': 10,                                       # ADA's state, an average of G
    f'aegan:{TINY}': 6,                                                   # four networks
    'encoder-species:size=32,batch=4,amp=no': 5,                          # a schedule, an exam at the end
    'pokegan2-dcgan:size=32,ngf=4,ndf=4,batch=4,amp=no,components=2': 3,  # three runs in one
    'finetune:batch=4,amp=no,zoom_share=0.5': 3}                          # begun elsewhere, with codes

# One process imports everything once, then forks a child for each life of the run. A child that is given a
# number is killed when it comes to that moment around the writing of a file: before it is put into its place,
# and behind. A number below 0 is a wait in milliseconds after the first file.
ZYGOTE = '''
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import fresh
fresh.prepare()
from pathlib import Path
from pokegan import load_images, recipe
from pokegan.models import encoder
from pokegan.recipes import variant
from pokegan.runs import resume, train
from torchvision.models.resnet import BasicBlock, ResNet
encoder.resnet = lambda pretrained=False: ResNet(BasicBlock, [1, 1, 1, 1])
sets = {s: load_images('creatures:24', s) for s in (32, 64)}

def die(): os.kill(os.getpid(), signal.SIGKILL)
def live(folder, words, steps, when):
    moment, replace = [0], os.replace
    def step():
        moment[0] += 1
        if moment[0] == when: die()
        if moment[0] == 1 and when < 0: threading.Timer(-when/1000, die).start()
    def replacing(*paths):
        step()
        replace(*paths)
        step()
    os.replace = replacing
    name, changes = variant(words)
    images = sets[recipe(name, **changes).size]
    if (Path(folder)/'run.json').exists(): resume(folder, data=images, device='cpu', progress=False)
    else:
        train(name, images, folder, steps=steps, device='cpu', save_every=1, keep_every=2,
              progress=False, **changes)
    (Path(folder).parent/'moments').write_text(str(moment[0]))

for line in sys.stdin:
    folder, words, steps, when = line.split()
    pid = os.fork()
    if pid == 0:
        try: live(folder, words, int(steps), int(when)); os._exit(0)
        except BaseException as e: print(repr(e), file=sys.stderr); os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''


@pytest.fixture(scope='module')
def zygote():
    p = subprocess.Popen([sys.executable, '-c', ZYGOTE, Path(__file__).parent], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    yield p
    p.stdin.close()
    p.wait(30)


def what_is_left(folder): # of a finished run, as values to compare
    found = {}
    for p in sorted(folder.rglob('*')):
        name = p.relative_to(folder).as_posix()
        if p.suffix == '.safetensors': found[name] = read_tensors(p)[0]
        elif p.suffix == '.png' and p.parent.name == 'samples': found[name] = p.read_bytes()
        elif p.name == 'log.csv': found[name] = [r['step'] for r in read_log(p)]
        elif p.name == 'run.json':
            info = json.loads(p.read_text(encoding='utf-8'))
            found[name] = {k: v for k, v in info.items() if k != 'seconds'}
        elif p.is_file() and not p.name.startswith('.lock'): found[name] = ''
    return found


def same(a, b):
    tensors = isinstance(a, dict) and any(map(torch.is_tensor, a.values()))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) if tensors else a == b


@pytest.mark.parametrize('words', FAMILIES, ids=lambda w: w.split(':')[0])
def test_a_killed_run_ends_as_if_it_never_was(words, zygote, tmp_path):
    def live(folder, when=0):
        print(folder, words, FAMILIES[words], when, file=zygote.stdin, flush=True)
        return int(zygote.stdout.readline())
    t0 = time.perf_counter()
    assert live(tmp_path/'whole') == 0
    took, moments = time.perf_counter() - t0, int((tmp_path/'moments').read_text())
    right = what_is_left(tmp_path/'whole')
    assert moments > 20 and any(k.endswith('state.safetensors') for k in right)
    rng, kills = random.Random(), 0  # really random: other moments at every run of this test
    while kills < KILLS:
        at, code = tmp_path/f'killed{kills}', -1
        while code:
            alive = kills < KILLS  # the last life is long
            if rng.random() < .3: when = -rng.randint(1, int(1000*took))
            else: when = rng.randint(1, moments)
            code = live(at, when if alive else 0)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            for p in at.rglob('*.safetensors'): assert read_tensors(p)[0], 'whole, or not there'
        left = what_is_left(at)
        assert left.keys() == right.keys()
        assert [k for k in right if not same(right[k], left[k])] == []
