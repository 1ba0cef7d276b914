"""New processes that find PyTorch loaded: a parent that has imported it forks one for each command.

That saves seconds of importing for each of some hundred commands. What a fork cannot show (how long starting
takes, signals, other interpreters) is tested with processes of its own. Without fork, as on Windows, every
command is one.
"""
import json, os, subprocess, sys, tempfile, threading
from pathlib import Path

PARENT = '''
import atexit, json, os, runpy, sys, traceback
import matplotlib, numpy, PIL.Image, torch
import pokegan.cli, pokegan.publish, pokegan.recipes, pokegan.runs

def become(asked):
    os.chdir(asked['cwd'])
    for fd, path in enumerate([os.devnull, asked['out'], asked['err']]):
        os.dup2(os.open(path, os.O_RDWR), fd)
    sys.stdin = open(os.devnull)
    sys.argv = ['pokegan', *asked['words']]
    code = 1
    try: runpy.run_module('pokegan', run_name='__main__', alter_sys=True); code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
    except BaseException: traceback.print_exc()
    atexit._run_exitfuncs()
    for f in sys.stdout, sys.stderr: f.flush()
    os._exit(code)

answers = os.fdopen(os.dup(1), 'w', buffering=1)
for line in sys.stdin:
    pid = os.fork()
    if not pid: become(json.loads(line))
    print(pid, file=answers)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)
'''
_parent = []


def run(words: list, cwd, env: dict, timeout: float = 240) -> subprocess.CompletedProcess: # pokegan WORDS
    "What `python -m pokegan` does. Raises TimeoutExpired."
    command = [sys.executable, '-m', 'pokegan', *map(str, words)]
    how = dict(text=True, env=env, encoding='utf-8')
    if not hasattr(os, 'fork'):
        return subprocess.run(command, cwd=cwd, capture_output=True, timeout=timeout, **how)
    if not _parent or _parent[0].poll() is not None:
        _parent[:] = [subprocess.Popen([sys.executable, '-c', PARENT], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, **how)]
    with tempfile.TemporaryDirectory() as d:
        out, err = (Path(d)/n for n in ('out', 'err'))
        for f in out, err: f.touch()
        asked = dict(words=[*map(str, words)], cwd=str(cwd), out=str(out), err=str(err))
        print(json.dumps(asked), file=_parent[0].stdin, flush=True)
        pid = int(_parent[0].stdout.readline())
        late = threading.Timer(timeout, os.kill, (pid, 9))
        late.start()
        code = int(_parent[0].stdout.readline())
        late.cancel()
        if code == -9: raise subprocess.TimeoutExpired(command, timeout)
        said = [f.read_text(encoding='utf-8') for f in (out, err)]
    return subprocess.CompletedProcess(command, code, *said)
