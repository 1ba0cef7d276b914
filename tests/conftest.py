import signal
from pathlib import Path

import fresh
import torch

torch.set_num_threads(1)  # two test processes at most, two cores: no thread waits for another
fresh.save_time()
# a job in the background ignores Ctrl-C, one under nohup SIGHUP, and so would the processes that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
if getattr(signal, 'SIGHUP', None) and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# What runs on the oldest versions, on Windows and on macOS as well: pytest -m quick (minutes, no network)
QUICK = ('cleaning cli data dcgan face fuzz losses publish records runs sampling schedules '
         'smoothing start stopping train walks').split()

# What takes longest begins first, so that no worker waits for another at the end
LONG = 'playground processes stopping site multiscale publish browser kills pokegan2 compare resume'.split()


def pytest_configure(config): # pytest-xdist would begin with the files of most tests
    if hasattr(config.option, 'loadscopereorder'): config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    def name(i): return Path(i.path).stem.removeprefix('test_')
    for i in items:
        if name(i) in QUICK: i.add_marker('quick')
    items.sort(key=lambda i: LONG.index(name(i)) if name(i) in LONG else len(LONG))
