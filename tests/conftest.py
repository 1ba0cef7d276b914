import signal

import torch

torch.set_num_threads(1)  # two test processes at most, two cores: no thread waits for another
# a job in the background ignores Ctrl-C, and so would its children
signal.signal(signal.SIGINT, signal.default_int_handler)
