"""What lesson 06b2 shows in small, with whole commands: signals at random moments, real processes that are
killed, ten at once, two in one folder, a terminal that goes away."""
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import fresh
import pytest
import torch

from pokegan import core, load_run, resume, train
from pokegan.core import check_free, claimed, holder, plain_torch, replacing_folder, while_still
from pokegan.data import Images
from pokegan.training.checkpoint import read_tensors
from pokegan.training.stopping import ENDS, StopCB
from pokegan.training.trainer import Callback

TINY = dict(size=16, ngf=4, ndf=4, nz=4, batch=8, d_rounds=2)
WORDS = ['train', '--recipe', 'dcgan-quick:ngf=4,ndf=4', '--size', '16', '--data', 'data', '--device', 'cpu']
linux = pytest.mark.skipif(sys.platform != 'linux', reason='signals and /proc as Linux has them')


def noise(n=40):
    g = torch.Generator().manual_seed(0)
    return Images(torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=g))


def pokegan(*words, cwd, **how):
    env = os.environ | dict(OMP_NUM_THREADS='1')
    line = [sys.executable, '-m', 'pokegan', *map(str, words)]
    return subprocess.Popen(line, cwd=cwd, env=env, text=True,
                            **dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | how)


def wait_for(path: Path, seconds=60):
    end = time.time() + seconds
    while not path.exists() and time.time() < end: time.sleep(.05)
    assert path.exists(), path


def info(run): return json.loads((run/'run.json').read_text(encoding='utf-8'))


# ---- signals ----

def test_thirty_interrupts_at_random_moments_cost_no_bit(tmp_path, monkeypatch):
    "The signal comes from another thread after a random time, also between two phases."
    import _thread, threading
    from pokegan.models import recipe
    for name in ('PictureCB', 'CurvesPictureCB'): monkeypatch.setattr(recipe, name, lambda folder: Callback())
    how = dict(progress=False, device='cpu')
    whole = train('dcgan-quick', noise(), tmp_path/'whole', steps=20, **how, **TINY)
    right, _ = read_tensors(whole.folder/'state.safetensors')
    rng, stopped = random.Random(), 0  # really random
    class Soon(Callback):
        def before_fit(self, t):
            self.timer = threading.Timer(rng.random()*whole.info['seconds'], _thread.interrupt_main)
            self.timer.start()
        def after_fit(self, t):
            self.timer.cancel()
            self.timer.join()
    for k in range(30):
        at = tmp_path/str(k)
        monkeypatch.setattr(recipe, 'LoadCB', Soon)  # in place of a callback that does not matter here
        run = train('dcgan-quick', noise(), at, steps=20, **how, **TINY)
        monkeypatch.setattr(recipe, 'LoadCB', Callback)
        assert run.info['stopped'] == ('interrupted' if run.info['step'] < 20 else '')
        stopped += run.info['step'] < 20
        resume(at, data=noise(), **how)
        left, meta = read_tensors(at/'state.safetensors')
        assert meta['step'] == 20
        assert [n for n in right if not torch.equal(right[n], left[n])] == []
    assert stopped > 10


@linux
@pytest.mark.parametrize('word', ENDS)
def test_each_signal_saves_and_has_its_exit_code(word, tmp_path):
    noise().save(tmp_path/'data')
    p = pokegan(*WORDS, '--minutes', 5, '--run', 'r', cwd=tmp_path)
    wait_for(tmp_path/'r/samples')
    number = getattr(signal, dict(interrupted='SIGINT', terminated='SIGTERM').get(word, 'SIGHUP'))
    p.send_signal(number)
    out, err = p.communicate(timeout=60)
    assert p.returncode == ENDS[word] == 128 + number
    said = 'interrupted' if word == 'interrupted' else f'ended by {signal.Signals(number).name}'
    assert err.strip().splitlines()[-1] == f'pokegan: {said}'
    assert info(tmp_path/'r')['stopped'] == word
    assert info(tmp_path/'r')['step'] == read_tensors(tmp_path/'r/state.safetensors')[1]['step'] > 0
    assert f'stopped early: {word}. Go on with: pokegan train --resume --run r' in out


@linux
def test_a_terminal_that_goes_away_is_no_reason_to_lose_work(tmp_path):
    noise().save(tmp_path/'data')
    import pty
    child, window = pty.fork()
    if not child:
        os.chdir(tmp_path)
        words = [sys.executable, '-m', 'pokegan', *WORDS, '--minutes', '5', '--run', 'r']
        os.execve(sys.executable, words, os.environ | dict(OMP_NUM_THREADS='1'))
    wait_for(tmp_path/'r/samples')
    os.close(window)  # now writing to it is an error, and the system sends SIGHUP
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (code, info(tmp_path/'r')['stopped']) == (129, 'hung up')


def test_the_third_signal_ends_at_once_and_handlers_are_put_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), StopCB() as stop:
        for k in range(3):
            signal.raise_signal(signal.SIGINT)
            assert stop.times == k+1 <= 2
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with StopCB() as stop: signal.raise_signal(signal.SIGTERM)
    assert not stop.asked and signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    signal.signal(signal.SIGTERM, ignored)


def test_the_sleep_of_a_laptop_is_not_training(monkeypatch, tmp_path):
    "The clock jumps by an hour within step 3; nothing else does."
    from pokegan.training import trainer
    real, slept = time.perf_counter, [0.]
    monkeypatch.setattr(trainer.time, 'perf_counter', lambda: real() + slept[0])
    from pokegan.models.recipe import make_trainer
    from pokegan.recipes import recipe
    t = make_trainer(recipe('dcgan-quick', **TINY), noise(), device='cpu')
    D, usual = t.phases[0], t.phases[0].loss
    def loss(b):
        if t.step == 3: slept[0] = 3600.
        return usual(b)
    D.loss = loss
    t.fit(steps=6)
    assert slept == [3600.] and t.step == 6 and 0 < t.seconds < 60


# ---- two at once ----

@linux
def test_ten_trainings_begun_at_once_are_ten_whole_runs(tmp_path):
    noise().save(tmp_path/'data')
    code = '''
import os, sys, time
sys.path.insert(0, sys.argv.pop(1))
import fresh
from pokegan.cli import main
fresh.prepare()
begin, ten = time.time() + .5, []
for k in range(10): # imported once, then ten processes
    ten.append(os.fork())
    if ten[-1]: continue
    time.sleep(max(0, begin - time.time()))
    main([*sys.argv[1:], '--seed', str(k)])
    os._exit(0)
print([os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in ten])'''
    words = [sys.executable, '-c', code, Path(__file__).parent, *WORDS, '--steps', '3']
    p = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True)
    assert p.stdout.splitlines()[-1] == str([0]*10), p.stderr
    runs = [load_run(p) for p in sorted((tmp_path/'runs').iterdir())]
    assert sorted(r.info['seed'] for r in runs) == [*range(10)]
    assert all(r.info['step'] == 3 and not holder(r.folder) for r in runs)


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    "Train, resume, evaluate and publish say who holds it; sample may look. SIGKILL lets go."
    noise().save(tmp_path/'data')
    p = fresh.Command([*WORDS, '--minutes', 5, '--run', 'r'], tmp_path, os.environ)
    wait_for(tmp_path/'r/samples')
    for words in (['train', '--resume', '--run', 'r'], [*WORDS, '--steps', 2, '--run', 'r'],
                  ['evaluate', 'r', '--features', 'random'], ['publish', 'r', '--out', 'p']):
        q = fresh.run(words, tmp_path, os.environ)
        assert q.returncode == 2 and q.stderr.count('\n') == 1, q.stderr
        assert f'r is in use by process {p.pid} on ' in q.stderr and ' since ' in q.stderr, q.stderr
    assert 'grid.png' in fresh.run(['sample', 'r', '--n', 4], tmp_path, os.environ).stdout
    p.kill()
    p.end()
    q = fresh.run(['train', '--resume', '--run', 'r', '--steps', 1], tmp_path, os.environ)
    assert q.stderr and q.returncode == 0
    assert not (tmp_path/'p').exists() and not (tmp_path/'r/.in-use').exists()


def test_a_claim_from_another_machine_counts_while_it_is_fresh(tmp_path):
    at = tmp_path/'r'
    with claimed(at): assert holder(at) == '' and (at/'.in-use').read_text().startswith(f'{os.getpid()} ')
    (at/'.in-use').write_text('12 far.example 2026-01-01 10:00')
    with pytest.raises(ValueError, match='process 12 on far.example since 2026-01-01 10:00'):
        with claimed(at): pass
    with pytest.raises(ValueError, match='is in use by'): check_free(at)
    os.utime(at/'.in-use', (time.time() - 200,)*2)
    check_free(at)
    with claimed(at): pass
    for strange in ('', 'x', '-1 a b', '9'*400, '1 \x1b[2J b\nc'):
        (at/'.in-use').write_text(strange)
        assert '\x1b' not in holder(at) and '\n' not in holder(at)


def test_a_sign_of_life_comes_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(core, 'ALIVE', (.05, 90.))
    with claimed(tmp_path):
        first = (tmp_path/'.in-use').stat().st_mtime_ns
        time.sleep(.4)
        assert (tmp_path/'.in-use').stat().st_mtime_ns > first


def test_sets_and_publications_written_at_once_are_whole(tmp_path):
    "Six processes write one folder again and again; a reader meets a whole one or none."
    run = train('dcgan-quick', noise(), tmp_path/'r', steps=1, progress=False, device='cpu', **TINY)
    code = '''
import sys
from pokegan.publish import publish
from pokegan.data import Images
import torch
x = torch.randint(0, 256, (int(sys.argv[2]), 3, 16, 16), dtype=torch.uint8)
for _ in range(6):
    try:
        if sys.argv[1] == 'set': Images(x).save('set')
        else: publish('r', 'out')
    except (OSError, ValueError) as e: print(e)'''
    (tmp_path/'code.py').write_text(code, encoding='utf-8')
    some = [fresh.Command([what, 20+k], tmp_path, os.environ, script='code.py')
            for what in ('set', 'out') for k in range(3)]
    met = 0
    while any(p.runs() for p in some):
        try: met += 20 <= len(Images.open(tmp_path/'set')) < 23
        except ValueError: continue
    for p in [q.end() for q in some]:
        assert p.returncode == 0, p.stderr
        assert all('another program' in l for l in p.stdout.splitlines()), p.stdout
    assert met and len(Images.open(tmp_path/'set')) in (20, 21, 22)
    assert load_run(tmp_path/'out').nets.keys() == {'G'} and run.nets.keys() > {'G'}
    assert sorted(p.name for p in tmp_path.iterdir()) == ['code.py', 'out', 'r', 'set']


def test_a_folder_is_looked_at_while_it_stays_the_same(tmp_path):
    "What is replaced, appears or goes between two questions is asked about again; real errors come out."
    at, seen = tmp_path/'a', []

    def put(name):
        with replacing_folder(at) as new: (new/name).write_text(name, encoding='utf-8')
    changes = [lambda: put('x'), lambda: put('y'), lambda: os.replace(at, tmp_path/'b')]

    def look(folder):
        seen.append(folder.exists())
        if changes: changes.pop(0)()
        return sorted(os.listdir(folder)) if seen[-1] else 'none'
    assert while_still(at, look) == 'none' and seen == [False, True, True, False]

    def refuse(folder): raise ValueError('bad')
    put('z')
    with pytest.raises(ValueError, match='bad'): while_still(at, refuse)


# ---- what another cell has set ----

@pytest.mark.parametrize('state', ['dtype', 'grad', 'inference', 'device'])
def test_other_states_of_torch_change_no_bit(state, tmp_path):
    how = dict(steps=2, progress=False, device='cpu', **TINY)
    right = train('dcgan-quick', noise(), tmp_path/'a', **how)
    x = right.sample(4)
    try:
        if state == 'dtype': torch.set_default_dtype(torch.float64)
        if state == 'device': torch.set_default_device('meta')
        with torch.set_grad_enabled(state != 'grad'), torch.inference_mode(state == 'inference'):
            run = train('dcgan-quick', noise_cpu(), tmp_path/'b', **how)
            y = run.sample(4)
            assert torch.get_default_dtype() == (torch.float64 if state == 'dtype' else torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(x, y) and y.dtype == torch.float32


def noise_cpu():
    with plain_torch(): return noise()
