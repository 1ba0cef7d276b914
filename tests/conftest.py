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


def pytest_collection_modifyitems(items):
    for i in items:
        if Path(i.path).stem.removeprefix('test_') in QUICK: i.add_marker('quick')
