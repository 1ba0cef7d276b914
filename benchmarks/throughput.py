"""Images per second: the tutorial loop that people copy, and pokegan's trainer, on the same networks and the same machine.

    python benchmarks/throughput.py [--threads 2] [--rounds 5] [--steps 6] [--photo 256]

(a) torchvision's ImageFolder of JPEGs + DataLoader, Sigmoid + BCELoss, three backward passes, float32.
(b) `pokegan.train.Trainer` on the image store, as `pokegan train` runs it.
The two alternate, so that a busy machine disturbs both alike; medians are printed, and (b)'s share of the speed at which this
machine multiplies matrices, measured between the rounds.
"""
import argparse, json, statistics, tempfile, time
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pokegan.creatures import draw
from pokegan.data import Images, load_images
from pokegan.dcgan import GANRecipe
from pokegan.recipes import make_trainer


def photos(folder: Path, n: int, side: int):
    "A folder of JPEGs as photographs come: creatures on white, side x side px."
    from PIL import Image
    (folder/'all').mkdir(parents=True)
    for i, a in enumerate(draw(n, side, seed=0).rgba):
        im = Image.fromarray(a)
        white = Image.new('RGBA', im.size, 'white')
        Image.alpha_composite(white, im).convert('RGB').save(folder/'all'/f'{i:05d}.jpg', quality=90)


def tutorial(folder: Path, G: nn.Module, D: nn.Module, batch: int):
    "The loop as it is copied from page to page; yields after each step."
    from torchvision import datasets, transforms as T
    tfm = T.Compose([T.Resize(64), T.CenterCrop(64), T.ToTensor(), T.Normalize([.5]*3, [.5]*3)])
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(folder, tfm), batch, shuffle=True, drop_last=True, num_workers=0)
    D, criterion = nn.Sequential(D, nn.Sigmoid()), nn.BCELoss()
    opt_G, opt_D = (torch.optim.Adam(m.parameters(), 2e-4, (.5, .999)) for m in (G, D))
    ones, zeros = torch.ones(batch), torch.zeros(batch)
    while True:
        for x, _ in loader:
            D.zero_grad()
            criterion(D(x), ones).backward()
            fake = G(torch.randn(batch, G.nz))
            criterion(D(fake.detach()), zeros).backward()
            opt_D.step()
            G.zero_grad()
            criterion(D(fake), ones).backward()
            opt_G.step()
            yield


def ours(images: Images, r):
    "pokegan's trainer; yields after each step."
    t = make_trainer(r, images)
    while True:
        t.one_step()
        yield t


def matmul(dtype, seconds: float = .6, n: int = 2048) -> float:
    "FLOP/s of n x n matrix products."
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    a @ b
    k, t0 = 0, time.perf_counter()
    while time.perf_counter() - t0 < seconds: a @ b; k += 1
    return k*2*n**3/(time.perf_counter() - t0)


def rate(loop, steps: int, batch: int) -> float:
    "Images per second over some steps."
    t0 = time.perf_counter()
    for _ in range(steps): next(loop)
    return steps*batch/(time.perf_counter() - t0)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--steps', type=int, default=6)
    p.add_argument('--photo', type=int, default=256, help='side of the JPEGs, px')
    p.add_argument('--json', action='store_true')
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    r = GANRecipe('dcgan', 'Radford 2015', head='conv')  # z 100, 64 base filters, 64 px, batch 64
    with tempfile.TemporaryDirectory() as tmp:
        photos(Path(tmp)/'jpg', 512, args.photo)
        a, b = tutorial(Path(tmp)/'jpg', *r.networks(0).values(), r.batch), ours(load_images(f'{tmp}/jpg', 64), r)
        for loop in (a, b): rate(loop, 2, r.batch)  # warm up
        with FlopCounterMode(display=False) as count: next(b)
        got = dict(a=[], b=[], bf16=[], fp32=[])
        for _ in range(args.rounds):
            got['bf16'].append(matmul(torch.bfloat16))
            got['a'].append(rate(a, args.steps, r.batch))
            got['b'].append(rate(b, 2*args.steps, r.batch))
            got['fp32'].append(matmul(torch.float32))
    m = {k: statistics.median(v) for k, v in got.items()}
    flops = count.get_total_flops()/r.batch*m['b']
    out = dict(threads=args.threads, tutorial=round(m['a'], 1), pokegan=round(m['b'], 1), ratio=round(m['b']/m['a'], 2), gflop_per_image=round(count.get_total_flops()/r.batch/1e9, 2),
               gflops=round(flops/1e9, 1), share_bf16=round(flops/m['bf16'], 3), share_fp32=round(flops/m['fp32'], 3),
               bf16_gflops=round(m['bf16']/1e9, 1), fp32_gflops=round(m['fp32']/1e9, 1))
    if args.json: print(json.dumps(out)); return
    print(f"tutorial loop {out['tutorial']} images/s, pokegan {out['pokegan']} images/s, ratio {out['ratio']} on {args.threads} threads")
    print(f"pokegan computes {out['gflops']} GFLOP/s: {out['share_bf16']:.0%} of bf16 ({out['bf16_gflops']}) and "
          f"{out['share_fp32']:.0%} of float32 matrix products ({out['fp32_gflops']})")


if __name__ == '__main__': main()
