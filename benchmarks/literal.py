"""DCGAN819 once more, in plain PyTorch and with nothing of this package: what the recipe must agree with.

Facts: system 4 of the course. Every switch takes the loop one step away from what was published."""
import torch
from torch import nn
from torch.nn.utils import spectral_norm

def conv_D(sn_last:bool=True): # (b,3,64,64) -> (b,) in (0,1); 2,765,696 parameters
    "Five convolutions, all of them spectrally normalised."
    widths, layers = [3, 64, 128, 256, 512], []
    for a, b in zip(widths, widths[1:]):
        conv = spectral_norm(nn.Conv2d(a, b, 4, 2, 1, bias=False))
        layers += [conv, nn.BatchNorm2d(b), nn.LeakyReLU(.2, inplace=True)]
    last = nn.Conv2d(512, 1, 4, 1, 0, bias=False)
    return nn.Sequential(*layers, spectral_norm(last) if sn_last else last, nn.Flatten(0), nn.Sigmoid())

def conv_G(nz:int=128): # (b,nz,1,1) -> (b,3,64,64) in [-1,1]; 3,806,080 parameters
    widths, layers = [nz, 512, 256, 128, 64], []
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        s, p = (1, 0) if i == 0 else (2, 1)
        layers += [nn.ConvTranspose2d(a, b, 4, s, p, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh())

@torch.no_grad()
def radford_start(net): # weights N(0, 0.02), gains N(1, 0.02): what DCGAN819 does not do
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.weight.normal_(1, .02)
        elif isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            (m.weight_orig if hasattr(m, 'weight_orig') else m.weight).normal_(0, .02)

def targets(n): # of reals, of fakes: smooth, noisy, one in twenty swapped
    real, fake = .85 + .15*torch.randn(n), .15 + .15*torch.randn(n)
    swap = torch.rand(n) < .05
    return torch.where(swap, fake, real), torch.where(swap, real, fake)

class Literal:
    "The published loop. `x` (n,3,64,64) in [-1,1]."
    def __init__(self, x, seed:int=0, batch:int=64, *,
                 normal_start=False, sn_last=True, reuse=False, bf16=False):
        torch.manual_seed(seed)
        self.x, self.batch, self.reuse, self.bf16 = x, batch, reuse, bf16
        self.G, self.D = conv_G(), conv_D(sn_last)
        if normal_start: radford_start(self.G), radford_start(self.D)
        self.opts = [torch.optim.Adam(m.parameters(), 2e-4, (.5, .9)) for m in (self.D, self.G)]
        self.order, self.right = torch.tensor([], dtype=torch.long), []

    def latents(self): return torch.randn(self.batch, 128, 1, 1)
    def targets(self): return targets(self.batch)

    def reals(self):
        while len(self.order) < self.batch: self.order = torch.cat([self.order, torch.randperm(len(self.x))])
        now, self.order = self.order[:self.batch], self.order[self.batch:]
        return self.x[now]

    def one_step(self):
        opt_D, opt_G = self.opts
        with torch.autocast('cpu', torch.bfloat16, enabled=self.bf16):
            x, x_hat = self.reals(), self.G(self.latents())
            real, fake = self.D(x).float(), self.D(x_hat.detach()).float()
        t_real, t_fake = self.targets()
        loss = cross_entropy(real, t_real) + cross_entropy(fake, t_fake)
        opt_D.zero_grad()
        loss.backward()
        opt_D.step()
        with torch.autocast('cpu', torch.bfloat16, enabled=self.bf16):
            if not self.reuse: x_hat = self.G(self.latents())
            fooled = self.D(x_hat).float()
        opt_G.zero_grad()
        cross_entropy(fooled, torch.ones(self.batch)).backward()
        opt_G.step()
        self.right.append(((real > .5).float().mean() + (fake <= .5).float().mean()).item()/2)

def cross_entropy(p, t): # targets may leave [0,1], which PyTorch's own does not allow
    def log(v): return v.clamp_min(1e-38).log().clamp_min(-100)
    return -(t*log(p) + (1-t)*log(1-p)).mean()
