import torch

torch.set_num_threads(1)  # two test processes at most, two cores: no thread waits for another
