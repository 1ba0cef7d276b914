"""Two processes, one training: the gradients of the doubled batch, one clock, one stop,
and the same bits after being killed. Real processes, really killed.

Run as a script this file is what the tests start: it imports torch once,
then forks the processes of each job."""
import json, os, random, re, shutil, signal, socket, subprocess, sys, time
from pathlib import Path

import fresh
import pytest
import torch
import torch.distributed as dist

from pokegan.data import Images, load_images
from pokegan.training.callbacks import read_log
from pokegan.training.checkpoint import CheckpointCB, read_tensors, write_tensors
from pokegan.training.distributed import (
    agree, all_reduce_mean, average_gradients, broadcast_object, DistributedCB, init_distributed,
    load_once, rank, wrap_callbacks)
from pokegan.training.health import HealthCB
from pokegan.training.losses import gp
from pokegan.training.stopping import StopCB
from pokegan.training.trainer import Callback

SMALL = dict(size=32, ngf=8, ndf=8, batch=8, amp=False)


def read_json(path): return json.loads(path.read_text(encoding='utf-8'))


def write_json(path, what): path.write_text(json.dumps(what), encoding='utf-8')


def noise(n=70):
    g = torch.Generator().manual_seed(0)
    return Images(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), source='noise')


# ---- what the processes do

class Recorder(Callback):
    "Keeps what the optimisers get to see: gradients after averaging."
    def __init__(self, folder): self.folder, self.seen = Path(folder), {}

    def before_fit(self, t):
        names = {id(p): f'{n}.{k}' for n, m in t.nets.items() for k, p in m.named_parameters()}
        def keep(opt, *_):
            i = len({k.split('/')[0] for k in self.seen})
            self.seen |= {f'{i:02d}/{names[id(p)]}': p.grad.clone().contiguous()
                          for g in opt.param_groups for p in g['params']}
        for o in {p.opt for p in t.phases}: o.register_step_pre_hook(keep)

    def after_fit(self, t):
        after = {f'after/{n}.{k}': p.detach().clone().contiguous()
                 for n, m in t.nets.items() for k, p in m.named_parameters()}
        logs = {k: float(v) for k, v in t.logs.items()}
        write_tensors(self.folder/f'{t.world}-{t.rank}.safetensors', self.seen | after, logs=logs)


class Rows:
    "A prior whose processes draw the rows of one table: what a single process would draw, dealt out."
    def __init__(self, nz): self.nz, self.k = nz, 0

    def __call__(self, n, generator):
        self.k += 1
        world, r, g = int(os.environ['WORLD_SIZE']), rank(), torch.Generator().manual_seed(self.k)
        return torch.rand(n*world, self.nz, generator=g)[r*n:(r+1)*n]*2 - 1


def dealt_gp():
    "The gradient penalty, with its random places dealt out in the same way."
    calls = [0]
    def penalty(D, x_real, x_fake, generator):
        calls[0] += 1
        g = torch.Generator().manual_seed(calls[0])
        torch.rand(rank()*len(x_real), generator=g)  # those of the processes before this one
        return gp(D, x_real, x_fake, g)
    return penalty


def job_gradients(folder, name, steps, changes):
    from pokegan.training import losses
    from pokegan.models.recipe import make_trainer
    from pokegan.recipes import recipe
    losses.PENALTIES['gp'] = dealt_gp()
    r = recipe(name, **changes)
    t = make_trainer(r, noise(), device='cpu')
    t.prior = Rows(r.nz)
    t.callbacks = [DistributedCB([*t.callbacks, Recorder(folder)])]
    t.fit(steps)


def job_live(folder, steps=60, name='dcgan-small-data', save_every=7):
    from pokegan.runs import resume, train
    if (Path(folder)/'run.json').exists(): resume(folder, data=noise(), progress=False)
    else: train(name, noise(), folder, steps=steps, progress=False, save_every=save_every, **SMALL, ema=.9)


class Once(Callback):
    "Does something at one step of one process."
    def __init__(self, step, who, what): self.step, self.who, self.what = step, who, what
    def after_step(self, t):
        if (t.step, t.rank) == (self.step, self.who): self.what(t)


def small_resnet():
    "A quarter of ResNet-34's parameters, for tests: one block in each stage."
    from pokegan.models import encoder
    from torchvision.models.resnet import BasicBlock, ResNet
    encoder.resnet = lambda pretrained=False: ResNet(BasicBlock, [1, 1, 1, 1])


def job_encoder(folder, die):
    "An encoder learns which way is up; process 1 is killed in step 3 if it shall be."
    from pokegan.models.encoder import train_encoder
    from pokegan.training import distributed
    from pokegan.recipes import recipe
    from pokegan.runs import resume
    small_resnet()
    if (Path(folder)/'run.json').exists():
        done = resume(folder, data=noise(), device='cpu', progress=False).info
    else:
        kill = Once(3, 1, lambda t: os.kill(os.getpid(), signal.SIGKILL))
        train_encoder(recipe('encoder-rotnet', size=32, batch=8, amp=False), noise(), folder, 4,
                      device=init_distributed('cpu'), save_every=2, callbacks=(kill,)*die,
                      team=distributed)
        done = read_json(Path(folder)/'run.json')
    write_json(Path(folder, f'{rank()}.json'), done['test'])


def job_three_steps(folder, stop):
    """PokeGAN-2.0 on two steps each; process 1 is terminated in the first step of the trainer
    that has the network `stop`."""
    from pokegan import runs
    from pokegan.models import recipe
    small_resnet()
    class StopCB(Callback):
        def after_step(self, t):
            here = t.rank, t.step, ''.join(k for k in 'ED' if k in t.nets)
            if here == (1, 1, stop): os.kill(os.getpid(), signal.SIGTERM)
    recipe.LoadCB = StopCB  # in place of a callback that does not matter here
    if (Path(folder)/'run.json').exists():
        done = runs.resume(folder, data=noise(), device='cpu', progress=False)
    else:
        done = runs.train('pokegan2-msg', noise(), folder, steps=2, device='cpu', progress=False,
                          **SMALL, components=5)
    write_json(Path(folder, f'{rank()}.json'), [done.info['step'], done.sample(2).abs().sum().item()])


def job_stops(folder, how):
    """Something happens in process 1 alone; each process writes down when it stopped, why
    and with which clock."""
    from pokegan.models.recipe import make_trainer
    from pokegan.recipes import recipe
    t = make_trainer(recipe('dcgan-quick', **SMALL), noise(), device='cpu')
    def ruin(t): t.nets['G'].blocks[0][0].weight.data.fill_(float('nan'))
    what = dict(
        wish=lambda t: setattr(t, 'stop', 'enough'),
        term=lambda t: os.kill(os.getpid(), signal.SIGTERM),
        drift=lambda t: t.nets['D'].blocks[0][0].weight.data.mul_(2),
        slow=lambda t: time.sleep(1),
        nan=lambda t: [p.data.fill_(float('nan')) for p in t.nets['D'].parameters()])[how]
    health = HealthCB(t.nets['G'], t.prior, every=5, say=lambda line: None)
    save = CheckpointCB(Path(folder)/'run', dict(recipe={}), every=2)
    stop = StopCB()
    t.callbacks = [DistributedCB([*t.callbacks, Once(7, 1, what), health, save, stop], every=4)]
    try:
        with stop: t.fit(**(dict(minutes=.03) if how == 'slow' else dict(steps=20)))
    except ValueError as e: t.stop = str(e)
    write_json(Path(folder, f'{rank()}.json'), [t.step, t.stop, t.seconds])


def job_data(folder, source):
    "Images by `load_once`; the number of times that this process has loaded any itself."
    from pokegan.training import distributed as processes
    init_distributed('cpu')
    calls, load = [], processes.load_images
    processes.load_images = lambda *a, **k: calls.append(a) or load(*a, **k)
    try: im = load_once(source, 32)
    except ValueError as e: out = [len(calls), str(e)]
    else:
        out = [len(calls), im.fingerprint, im.source, len(im.labels), im.labels['species'][:9],
               str(im.report).count('\n'), im.x.float().mean().item()]
    write_json(Path(folder, f'{rank()}.json'), out)


def job_small_steps(folder):
    "The primitives, with numbers that can be added up in one's head."
    init_distributed('cpu')
    r = rank()
    a, b = all_reduce_mean([torch.full((2, 2), float(r)), torch.tensor([4.*r])])
    told = broadcast_object(lambda: f'from {r}')
    p = torch.nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
    p.grad = (torch.arange(96.).view(2, 3, 4, 4)*(r+1)).to(memory_format=torch.channels_last)
    average_gradients(torch.optim.SGD([p, torch.nn.Parameter(torch.zeros(1))], lr=1.))
    right = torch.equal(p.grad, torch.arange(96.).view(2, 3, 4, 4)*1.5)
    out = [a.tolist(), b.tolist(), told, agree(''), agree('me'*r), agree(str(r)), right]
    write_json(Path(folder, f'{r}.json'), out)


def job_ddp(folder):
    """A penalty under DistributedDataParallel and under averaging before the step:
    errors against the doubled batch."""
    from pokegan.models.dcgan import conv_discriminator
    init_distributed('cpu')
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))*2 - 1
    def gradients(D, x, net, backwards):
        D.zero_grad()
        x = x.clone().requires_grad_(True)
        logits = net(x)
        slope, = torch.autograd.grad(logits.sum(), x, create_graph=True)
        adversarial, penalty = logits.mean(), 10*(slope.flatten(1).norm(dim=1) - 1).square().mean()
        if backwards == 1: (adversarial + penalty).backward()
        else: adversarial.backward(retain_graph=True); penalty.backward()
        return [p.grad.clone() for p in D.parameters()]
    torch.manual_seed(0)
    D = conv_discriminator(32, 8, 'none')
    whole, mine = gradients(D, x, D, 1), x[8*rank():8*rank()+8]
    far = lambda a: max(((u-v).norm()/v.norm()).item() for u, v in zip(a, whole))
    ddp = torch.nn.parallel.DistributedDataParallel(D)
    out = {f'{n} ddp': far(gradients(D, mine, ddp, n)) for n in (1, 2)}
    out |= {f'{n} ours': far(all_reduce_mean(gradients(D, mine, D, n))) for n in (1, 2)}
    write_json(Path(folder, f'{rank()}.json'), out)


def job_scale(folder, n):
    """n pictures of 64 px through a mapped file, with a painter that takes no time:
    memory that is not a file, at each stage, and the time of a batch."""
    import numpy as np
    from pokegan.creatures import species as creatures
    from pokegan.models.recipe import make_trainer
    from pokegan.recipes import recipe
    def draw(n, size, seed, start):
        pixels = np.random.default_rng(start).integers(0, 256, (n, size, size, 4), np.uint8)
        return creatures.Creatures(pixels, dict(species=list(range(start, start+n))))
    creatures.draw, out = draw, {}
    def note(stage):
        status = Path('/proc/self/status').read_text(encoding='utf-8')
        out[stage] = int(status.split('RssAnon:')[1].split()[0])/1024
    load_images('creatures:64', 64, progress=False)
    note('before')
    im = load_images(f'creatures:{n}', 64, memory=0, progress=False)
    note('drawn')
    print_ = im.fingerprint, im.save(Path(folder)/'prepared')
    note('saved')
    del im
    im = Images.open(Path(folder)/'prepared', memory=0)
    assert im.fingerprint == print_[0] and len(im) == n
    note('opened')
    t = make_trainer(recipe('dcgan-quick', ngf=8, ndf=8, batch=32, amp=False), im, device='cpu').fit(3)
    note('trained a little')
    t.fit(40)
    note('trained')
    times = []
    for k in range(50):
        t0 = time.process_time()
        t.step += 1
        t.reals(t.indices(0))
        times.append(time.process_time() - t0)
    write_json(Path(folder, '0.json'), [out, min(times)])


def serve():
    """One line of JSON per job: fork its processes, print their ids, then, when all have ended,
    their exit codes."""
    import pokegan.recipes  # noqa: F401, here, so that no child has to
    fresh.prepare()
    for line in sys.stdin:
        name, world, words = json.loads(line)
        with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
        children = []
        for r in range(world):
            children.append(os.fork())
            if children[-1]: continue
            os.environ |= dict(
                RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
                MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
            try: globals()['job_' + name](**words); os._exit(0)
            except BaseException as e:
                print(f'{r}: {type(e).__name__}: {e}', file=sys.stderr, flush=True)
                os._exit(1)
        print(json.dumps(children), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]), flush=True)


if __name__ == '__main__': serve()


# ---- what the tests ask of them

class Zygote:
    def __init__(self, log):
        self.log = log
        self.p = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=open(log, 'w', encoding='utf-8'), text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))

    def start(self, job, world=2, /, **words) -> list:
        words = {k: str(v) if isinstance(v, Path) else v for k, v in words.items()}
        self.p.stdin.write(json.dumps([job, world, words]) + '\n')
        self.p.stdin.flush()
        return json.loads(self.p.stdout.readline())

    def codes(self) -> list: return json.loads(self.p.stdout.readline())

    def run(self, job, world=2, /, folder=None, **words):
        self.start(job, world, folder=folder, **words)
        assert self.codes() == [0]*world, self.log.read_text(encoding='utf-8')
        return [read_json(folder/f'{r}.json') for r in range(world) if (folder/f'{r}.json').exists()]


@pytest.fixture(scope='module')
def zygote(tmp_path_factory):
    z = Zygote(tmp_path_factory.mktemp('zygote')/'stderr')
    yield z
    z.p.stdin.close()
    z.p.wait(30)


def test_small_steps(zygote, tmp_path):
    a, b = zygote.run('small_steps', folder=tmp_path)
    assert a == b == [[[.5, .5], [.5, .5]], [2.], 'from 0', '', 'me', '0', True]


def far(a, b) -> dict: # relative difference of every gradient
    return {k: ((a[k]-b[k]).abs().max()/b[k].abs().max().clamp(min=1e-12)).item() for k in b}


GAMES = dict(
    bce=('dcgan-quick', dict(norm='group')),
    relativistic=('dcgan-quick', dict(norm='group', loss='relativistic', d_rounds=2)),
    split=('dcgan-quick', dict(norm='group', split_d=True)),
    spectral=('dcgan-819', dict(norm='group', target_noise=0., flip=0.)),
    penalty=('wgan-gp', dict(norm='group', latent='uniform', d_rounds=2)))


@pytest.mark.parametrize('game', GAMES)
def test_gradients_equal_one_process_with_the_doubled_batch(zygote, tmp_path, game):
    name, changes = GAMES[game]
    for world, batch in ((1, 16), (2, 8)):
        zygote.run('gradients', world, folder=tmp_path, name=name, steps=3,
                   changes=SMALL | changes | dict(batch=batch, lr=0.))
    (one, m1), (two, m2), (other, _) = (
        read_tensors(tmp_path/f'{w}.safetensors') for w in ('1-0', '2-0', '2-1'))
    assert one.keys() == two.keys()
    assert len({k.split('/')[0] for k in one}) >= 7
    assert max(v.abs().max() for v in one.values()) > 1e-3
    assert max(far(two, one).values()) < 1e-5
    assert all(torch.equal(two[k], other[k]) for k in two), 'both processes hold the same bits'
    assert all(abs(m1['logs'][k] - v) < 1e-4 for k, v in m2['logs'].items()), 'the log speaks for both'


def test_learning_stays_equal(zygote, tmp_path):
    """With a learning rate: after five steps the weights differ by rounding,
    a thousandth of what one step changes."""
    for world, batch in ((1, 16), (2, 8)):
        zygote.run('gradients', world, folder=tmp_path, name='dcgan-quick', steps=5,
                   changes=SMALL | dict(norm='group', batch=batch, lr=1e-4))
    one, two = (read_tensors(tmp_path/f'{w}.safetensors')[0] for w in ('1-0', '2-0'))
    apart = torch.cat([(one[k]-two[k]).flatten() for k in one if k.startswith('after')]).abs()
    assert apart.mean() < 1e-7 and (apart > 1e-5).float().mean() < .01


def test_batch_norm_differs(zygote, tmp_path):
    """Each process normalises by its own half: what the lesson measures,
    so that nobody believes in an equality that is not there."""
    for world, batch in ((1, 16), (2, 8)):
        zygote.run('gradients', world, folder=tmp_path, name='dcgan-quick', steps=1,
                   changes=SMALL | dict(norm='batch', batch=batch, lr=0.))
    one, two = (read_tensors(tmp_path/f'{w}.safetensors')[0] for w in ('1-0', '2-0'))
    assert max(far(two, one).values()) > .05


def test_a_penalty_needs_one_backward_under_ddp_and_none_in_particular_here(zygote, tmp_path):
    found, _ = zygote.run('ddp', folder=tmp_path)
    assert found['1 ddp'] < 1e-5 and found['1 ours'] < 1e-5, found
    assert found['2 ours'] < 1e-5 and found['2 ddp'] > .05, found


@pytest.mark.parametrize('how', ['wish', 'term', 'nan', 'drift', 'slow'])
def test_one_clock_one_stop(zygote, tmp_path, how):
    """Process 1 alone wishes to stop, is terminated, goes astray, or is slow:
    both end at the same step, for the same reason, by the same clock."""
    a, b = zygote.run('stops', folder=tmp_path, how=how)
    assert a == b
    step, stop, seconds = a
    words = dict(wish='^enough$', term='^terminated$', nan='NaN|different weights',
                 drift='different weights', slow='^$')[how]
    assert re.search(words, stop), a
    if how == 'slow': assert seconds > 1.8 and step > 7
    else: assert step == 7 if how in ('wish', 'term') else step <= 20
    if how in ('wish', 'term', 'slow'): assert read_json(tmp_path/'run/run.json')['step'] == step


def same(whole, killed, steps):
    (a, ma), (b, mb) = (read_tensors(p/'state.safetensors') for p in (whole, killed))
    assert ma['step'] == mb['step'] == steps and ma['processes'] == 2 and a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert not list(killed.rglob('.*aside'))
    clocks = 'seconds', 'cpu', 'ram'
    rows = [[{k: v for k, v in r.items() if k not in clocks} for r in read_log(p/'log.csv')]
            for p in (whole, killed)]
    assert rows[0] == rows[1]
    assert [r['step'] for r in rows[0]] == list(range(20, steps+1, 20))
    assert 'ADA/p' in rows[0][0]


KILLS = [0], [1], [0, 1], [1]


def step_of(folder) -> int: # of its last checkpoint
    state = folder/'state.safetensors'
    return read_tensors(state)[1]['step'] if state.exists() else -1


def test_killed_and_resumed_is_the_same_run(zygote, tmp_path):
    """SIGKILL for process 0, for process 1, for both, in the midst of training;
    whoever survives ends by itself, in one line, within seconds."""
    zygote.run('live', folder=tmp_path/'whole')
    rng, kills, folder = random.Random(), [], tmp_path/'killed'
    while True:
        pids, begun = zygote.start('live', folder=folder), step_of(folder)
        who = KILLS[len(kills)] if len(kills) < len(KILLS) else []
        while who and step_of(folder) < max(begun + 1, 12*len(kills) + 1): time.sleep(.005)
        time.sleep(rng.uniform(0, .15))
        for r in who:
            try: os.kill(pids[r], signal.SIGKILL)
            except ProcessLookupError: pass  # it was faster and has ended
        t0, codes = time.perf_counter(), zygote.codes()
        if codes == [0, 0]:
            same(tmp_path/'whole', folder, 60)
            if len(kills) == len(KILLS): break
            shutil.rmtree(folder)  # all over before the last kill: once more
            kills = []
            continue
        assert all(codes[r] == -signal.SIGKILL for r in who) and time.perf_counter() - t0 < 20
        assert all(c == 1 for r, c in enumerate(codes) if r not in who), codes
        kills.append(step_of(folder))
    said = zygote.log.read_text(encoding='utf-8').splitlines()
    lines = [line for line in said if 'ConnectionError' in line]
    assert len(lines) >= 3, lines
    assert all('go on from the last checkpoint with --resume' in line for line in lines), lines
    print(f'steps of the last checkpoint after each kill: {kills}')


def test_a_run_keeps_its_number_of_processes(zygote, tmp_path):
    zygote.run('live', folder=tmp_path/'run', steps=4, name='dcgan-quick')
    assert read_json(tmp_path/'run/run.json')['processes'] == 2
    zygote.start('live', 1, folder=tmp_path/'run')
    assert zygote.codes() == [1]
    last = zygote.log.read_text(encoding='utf-8').splitlines()[-1]
    assert 'trained by 2 processes; resume it with as many' in last


def tensors(folder) -> dict: return read_tensors(folder/'state.safetensors')[0]


def equal(a:dict, b:dict) -> bool: return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_encoder_is_killed_and_resumed(zygote, tmp_path):
    whole = zygote.run('encoder', folder=tmp_path/'whole', die=False)
    zygote.start('encoder', folder=tmp_path/'killed', die=True)
    assert zygote.codes() == [1, -signal.SIGKILL] and read_json(tmp_path/'killed/run.json')['step'] == 2
    killed = zygote.run('encoder', folder=tmp_path/'killed', die=False)
    assert whole == killed
    assert whole[0] == whole[1], 'one exam, which both have read'
    assert set(whole[0]) == {'top1', 'top5', 'loss'}
    assert equal(*map(tensors, (tmp_path/'whole', tmp_path/'killed')))
    info, row = read_json(tmp_path/'killed/run.json'), read_log(tmp_path/'killed/log.csv')[-1]
    assert (info['processes'], info['step'], info['images'], info['stopped']) == (2, 4, 2*4*8, '')
    assert {'lr', 'val/top1'} <= row.keys()


def test_three_steps_stopped_in_each_and_resumed(zygote, tmp_path):
    """Terminated while the encoder learns, terminated while G paints, and at last left in peace:
    the same bits as a run that always was."""
    whole, folder = zygote.run('three_steps', folder=tmp_path/'whole', stop='none'), tmp_path/'parts'
    def at():
        files = {k: folder/k/'run.json' for k in ('encoder', 'pretrain', '.')}
        infos = {k: read_json(p) for k, p in files.items() if p.exists()}
        return {k: (i['step'], i['stopped'], i['processes']) for k, i in infos.items() if 'processes' in i}
    stops = dict(
        E=dict(encoder=(1, 'terminated', 2)),
        G=dict(encoder=(2, '', 2), pretrain=(1, 'terminated', 2)))
    for stop, want in stops.items():
        zygote.start('three_steps', folder=folder, stop=stop.replace('G', ''))
        assert zygote.codes() == [1, 1] and at() == want, zygote.log.read_text(encoding='utf-8')
    assert zygote.run('three_steps', folder=folder, stop='none') == whole and whole[0] == whole[1]
    assert at() == {'encoder': (2, '', 2), 'pretrain': (2, '', 2), '.': (2, '', 2)}
    for k in ('encoder', 'pretrain', '.'): assert equal(tensors(tmp_path/'whole'/k), tensors(folder/k)), k
    means = [read_tensors(folder/k/'last.safetensors')[0]['mixture.means']
                       for k in ('pretrain', '.')]
    assert torch.equal(*means), 'fitted once, by process 0, and carried along'
    assert means[0].abs().max() > 0


def test_data_is_prepared_once(zygote, tmp_path):
    (n0, *first), (n1, *second) = zygote.run('data', folder=tmp_path, source='creatures:90')
    assert (n0, n1) == (1, 0) and first == second
    assert first[1] == 'creatures:90'
    assert first[0] == load_images('creatures:90', 32).fingerprint
    load_images('creatures:90', 32).save(tmp_path/'prepared')
    a, b = zygote.run('data', folder=tmp_path, source=str(tmp_path/'prepared'))
    assert a[0] == b[0] == 1 and a[1] == b[1] == first[0], 'a prepared folder is mapped by both'
    a, b = zygote.run('data', folder=tmp_path, source='nothing/here')
    assert a[0] == 1 and b[0] == 0 and a[1] == b[1] and 'no such file' in a[1]


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc')
def test_thousands_of_pictures_take_no_memory_of_their_own(zygote, tmp_path):
    "6,000 pictures of 64 px, forced into a mapped file. (80,000 and the whole training: docs/runs.md.)"
    (memory, seconds), = zygote.run('scale', 1, folder=tmp_path, n=6000)
    print(memory, seconds)
    pixels = 6000*3*64*64/2**20  # MiB
    assert pixels > 70
    assert max(memory[k] for k in ('drawn', 'saved', 'opened')) - memory['before'] < 25, memory
    assert memory['trained'] - memory['trained a little'] < 25, memory
    assert seconds < .005, 'a batch of 32 from the file is ready in a few milliseconds'


def test_alone_it_changes_nothing():
    from pokegan.models.recipe import make_trainer
    from pokegan.recipes import recipe
    weights = []
    for wrap in (list, lambda cbs: [DistributedCB(cbs)]):
        t = make_trainer(recipe('dcgan-quick', **SMALL), noise(), device='cpu')
        t.callbacks = wrap(t.callbacks)
        handler = signal.getsignal(signal.SIGTERM)
        nets = t.fit(3).nets.values()
        weights.append(torch.cat([p.detach().flatten() for m in nets for p in m.parameters()]))
        assert signal.getsignal(signal.SIGTERM) is handler and not dist.is_initialized()
    assert wrap_callbacks([]) == [] and torch.equal(*weights)
    assert rank() == 0 and agree('x') == 'x' and broadcast_object(lambda: 3) == 3


def test_batch_norm_is_converted_in_place():
    """On GPUs each BatchNorm becomes a SyncBatchNorm: the same parameters, names and buffers.
    (Its forward pass wants a GPU; here only the exchange is tested.)"""
    from pokegan.models.recipe import make_trainer
    from pokegan.recipes import recipe
    t = make_trainer(recipe('dcgan-quick', **SMALL), noise(), device='cpu')
    G = t.nets['G']
    before, ids = list(G.state_dict()), [id(p) for p in G.parameters()]
    out = torch.nn.SyncBatchNorm.convert_sync_batchnorm(G)
    assert out is G and list(G.state_dict()) == before and [id(p) for p in G.parameters()] == ids
    kinds = {type(m).__name__ for m in G.modules()}
    assert 'SyncBatchNorm' in kinds and 'BatchNorm2d' not in kinds


def test_too_few_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    for k, v in dict(RANK='0', WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', LOCAL_RANK='0').items():
        monkeypatch.setenv(k, v)
    with pytest.raises(ValueError, match='2 processes want a GPU each, and this machine has 1'):
        init_distributed('cuda')


# ---- the command line

def torchrun(*words, cwd):
    env = {k: v for k, v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE')} | dict(OMP_NUM_THREADS='1')
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    return subprocess.Popen([*launch, '-m', 'pokegan', '--', *map(str, words)],
                            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_torchrun_trains_one_run(tmp_path):
    p = torchrun('train', '--data', 'creatures:64', '--steps', 2, '--device', 'cpu', cwd=tmp_path)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err
    assert out.count('step 2, 128 images') == 1
    assert [d.name for d in (tmp_path/'runs').iterdir()] == ['projected-quick-1']
    info = read_json(tmp_path/'runs/projected-quick-1/run.json')
    assert info['processes'] == 2 and info['images'] == 2*2*32
    assert (tmp_path/'runs/projected-quick-1/progress.gif').exists()


def test_torchrun_trains_what_has_an_encoder(tmp_path):
    "PokeGAN-2.0, then the encoder in its folder for one step more."
    whole = '--recipe', 'pokegan2-msg', '--data', 'creatures:100', '--steps', 1, '--size', 32, '--run', 'a'
    more = '--resume', '--steps', 2, '--run', 'a/encoder'
    for words, at, n in ((whole, 'a', 128), (more, 'a/encoder', 256)):
        p = torchrun('train', '--device', 'cpu', *words, cwd=tmp_path)
        out, err = p.communicate(timeout=120)
        assert p.returncode == 0 and out.count(f', {n} images') == 1, err
        assert read_json(tmp_path/at/'run.json')['processes'] == 2 and not list(tmp_path.rglob('.*aside'))
    assert 'test' in read_json(tmp_path/'a/encoder/run.json')
    assert (tmp_path/'a/pretrain/last.safetensors').exists()


def test_ctrl_c_saves_once_and_resume_goes_on(tmp_path):
    p = torchrun('train', '--data', 'creatures:64', '--minutes', 2, '--size', 32, '--device', 'cpu',
                 '--run', 'a', cwd=tmp_path)
    t0 = time.perf_counter()
    first = tmp_path/'a/samples'  # the first grid: it trains
    while not first.exists() and time.perf_counter() - t0 < 100: time.sleep(.1)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    step = read_json(tmp_path/'a/run.json')['step']
    assert p.returncode and step > 0, out + err
    assert out.count('stopped early: interrupted') == 1, out + err
    assert err.count('pokegan: interrupted') == 1, out + err
    q = torchrun('train', '--resume', '--run', 'a', '--steps', step+3, '--device', 'cpu', cwd=tmp_path)
    out, err = q.communicate(timeout=120)
    assert q.returncode == 0 and out.count(f'step {step+3}, {2*(step+3)*32} images') == 1, err


def test_a_mistake_is_named_once(tmp_path):
    p = torchrun('train', '--recipe', 'dcgan-quik', cwd=tmp_path)
    _, err = p.communicate(timeout=120)
    assert p.returncode and len(re.findall('pokegan: no recipe is called', err)) == 1, err
