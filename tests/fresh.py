"""New processes that find PyTorch loaded: a parent that has imported it forks one for each command.

That saves seconds of importing for each of some hundred commands; they are processes like others, with an
environment, an exit code and signals of their own. What a fork cannot show (how long starting takes, what is
imported, other interpreters) is tested without it. Without fork, as on Windows, each is started whole.

Run as a script this file is the parent.
"""
import json, os, signal, subprocess, sys, tempfile, threading
from pathlib import Path

import psutil


def save_time():
    """What takes long and shows nothing in a test. A killed process loses nothing that it has written (that
    takes a power cut), so nobody waits for the disk. Figures that go to a file are drawn small, with no
    numbers on their axes, and without the engine that moves their parts."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import NullLocator
    os.fsync, savefig = lambda fd: None, Figure.savefig
    def small(self, to, *args, **kw):
        if not isinstance(to, (str, Path)): return savefig(self, to, *args, **kw) # for a notebook: as it is
        for a in self.axes:
            for axis in a.xaxis, a.yaxis: axis.set_major_locator(NullLocator())
        savefig(self, to, *args, **kw | dict(dpi=min(70, kw.get('dpi', 70))))
    Figure.savefig, ConstrainedLayoutEngine.execute = small, lambda *a: None


def prepare():
    "In a process that forks trainings: what each would import late, a second's worth of PyTorch among it."
    import matplotlib.backends.backend_agg, matplotlib.figure, torch  # noqa: F401, E401
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    torch.set_num_threads(1)
    save_time()


def become(asked: dict):
    "In the child: what `python -m pokegan WORDS`, or `python SCRIPT WORDS`, does."
    import atexit, runpy, traceback
    os.environ.clear()
    os.environ.update(asked['env'])
    os.chdir(asked['cwd'])
    for fd, path in enumerate([os.devnull, asked['out'], asked['err']]):
        os.dup2(os.open(path, os.O_RDWR), fd)
    sys.stdin = open(os.devnull)
    sys.path[0] = asked['cwd']
    script = asked['script']
    sys.argv = [script or 'pokegan', *asked['words']]
    code = 1
    try:
        if script: runpy.run_path(script, run_name='__main__')
        else: runpy.run_module('pokegan', run_name='__main__', alter_sys=True)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
    except BaseException: traceback.print_exc()
    atexit._run_exitfuncs()
    for f in sys.stdout, sys.stderr: f.flush()
    os._exit(code)


def serve():
    "A line of JSON that is a command: fork it, say its id. A line that is an id: its exit code, at its end."
    import pokegan.cli, pokegan.compare, pokegan.publish, pokegan.recipes, pokegan.runs  # noqa: F401, E401
    prepare()
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int): print(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]), file=answers)
        elif pid := os.fork(): print(pid, file=answers)
        else: become(asked)


_parent = []


def ask(what: dict | int) -> int:
    if not _parent or _parent[0].poll() is not None:
        _parent[:] = [subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, encoding='utf-8',
                                       stdout=subprocess.PIPE, env=os.environ | dict(OMP_NUM_THREADS='1'))]
    print(json.dumps(what), file=_parent[0].stdin, flush=True)
    return int(_parent[0].stdout.readline())


class Command:
    "A command that may still run: `end` waits for it; `pid`, `send_signal` and `kill` are those of a Popen."
    def __init__(self, words, cwd, env: dict, script=''):
        self.d = tempfile.TemporaryDirectory()
        self.said = [Path(self.d.name)/n for n in ('out', 'err')]
        for f in self.said: f.touch()
        words, out = [*map(str, words)], [*map(str, self.said)]
        self.args = [sys.executable, *([script] if script else ['-m', 'pokegan']), *words]
        self.p = None
        if hasattr(os, 'fork'):
            how = dict(script=script, cwd=str(cwd), env=dict(env))
            self.pid = ask(how | dict(words=words, out=out[0], err=out[1]))
        else:
            with open(out[0], 'w') as o, open(out[1], 'w') as e:
                self.p = subprocess.Popen(self.args, cwd=cwd, env=env, stdout=o, stderr=e)
            self.pid = self.p.pid

    def runs(self) -> bool:
        return self.p.poll() is None if self.p else psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
    def send_signal(self, number): os.kill(self.pid, number)
    def kill(self): self.p.kill() if self.p else self.send_signal(signal.SIGKILL)

    def end(self, timeout: float = 240) -> subprocess.CompletedProcess:
        "Raises TimeoutExpired, and then it has been killed."
        late = []
        timer = threading.Timer(timeout, lambda: late.append(self.kill()))
        timer.start()
        code = self.p.wait() if self.p else ask(self.pid)
        timer.cancel()
        if late: raise subprocess.TimeoutExpired(self.args, timeout)
        said = [f.read_text(encoding='utf-8') for f in self.said]
        self.d.cleanup()
        return subprocess.CompletedProcess(self.args, code, *said)


def run(words: list, cwd, env: dict, timeout: float = 240, script='') -> subprocess.CompletedProcess:
    "`python -m pokegan WORDS`, or `python SCRIPT WORDS`. Raises TimeoutExpired."
    return Command(words, cwd, env, script).end(timeout)


if __name__ == '__main__': serve()
