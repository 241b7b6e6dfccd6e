#!/usr/bin/env python3
"""The default run of `cargo run --release` in PyTorch: SGD and SAM on Fashion-MNIST with wrong labels.

The same images, network, optimizer, schedule, share of wrong labels, number of seeds and defaults. PyTorch draws other
random numbers from a seed, so single runs differ: compare the means over some seeds.
"""
import argparse
import gzip
import json
import math
import statistics
import time
from pathlib import Path

import networks
import numpy
import torch
import torch.nn.functional as F
from sam import Sam

TEST_BATCH = 500


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(__file__).resolve().parent.parent / "data" / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=data, help="folder of the four IDX files [default: the repository's]")
    parser.add_argument("--model", default="mlp", help=f"network: {networks.NAMES} [default: mlp]")
    parser.add_argument("--only", choices=["sgd", "sam"], help="train with one method only")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds [default: 3]")
    parser.add_argument("--seed", type=int, default=0, help="first seed [default: 0]")
    parser.add_argument("--noise", type=float, default=0.4, help="share of wrong training labels [default: 0.4]")
    parser.add_argument("--rho", type=float, default=0.2, help="radius of SAM's ball [default: 0.2]")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05, help="falls to 0 along a cosine [default: 0.05]")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, help="threads of the CPU [default: all]")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--log", type=Path, help="write a line of JSON for each epoch to this file")
    return parser.parse_args()


def read(folder, name):
    """An IDX file: magic number with the number of axes, their sizes, bytes."""
    path = folder / name
    data = path.read_bytes() if path.exists() else gzip.decompress((folder / f"{name}.gz").read_bytes())
    axes = data[3]
    shape = numpy.frombuffer(data, dtype=">u4", count=axes, offset=4)
    return torch.from_numpy(numpy.frombuffer(data, dtype=numpy.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def load(folder, device):
    """Images normalized by the mean and standard deviation of the training images, and labels, of both parts."""
    images = [read(folder, f"{part}-images-idx3-ubyte").unsqueeze(1).double() / 255 for part in ("train", "t10k")]
    labels = [read(folder, f"{part}-labels-idx1-ubyte").long().to(device) for part in ("train", "t10k")]
    mean, std = images[0].mean(), images[0].std(correction=0)
    images = [((part - mean) / std).float().to(device) for part in images]
    return images, labels


def with_noise(labels, share, generator):
    """Each label becomes, with this probability, one of the other nine."""
    is_wrong = torch.rand(len(labels), generator=generator) < share
    others = torch.randint(1, 10, (len(labels),), generator=generator)
    return torch.where(is_wrong.to(labels.device), (labels + others.to(labels.device)) % 10, labels)


@torch.no_grad()
def error_rate(model, images, labels):
    model.eval()
    wrong = sum((model(x).argmax(1) != y).sum() for x, y in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH)))
    model.train()
    return wrong.item() / len(labels)


def train(args, method, seed, images, labels):
    """Yields a line of the log for each epoch."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    noisy = with_noise(labels[0], args.noise, generator)
    model = networks.network(args.model, tuple(images[0].shape[1:])).to(args.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    sam = Sam(model.parameters(), args.rho)
    steps = len(noisy) // args.batch
    for epoch in range(args.epochs):
        start = time.perf_counter()
        order = torch.randperm(len(noisy), generator=generator).to(args.device)
        losses = []
        for step in range(steps):
            batch = order[step * args.batch:(step + 1) * args.batch]
            x, y = images[0][batch], noisy[batch]
            progress = (epoch * steps + step) / (args.epochs * steps)
            optimizer.param_groups[0]["lr"] = args.lr * 0.5 * (1 + math.cos(math.pi * progress))

            def backward(x=x, y=y):
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss.detach()

            if method == "sam":
                losses.append(sam.step(backward, optimizer))
            else:
                losses.append(backward())
                optimizer.step()
                optimizer.zero_grad()
        loss = torch.stack(losses).double().mean().item()
        seconds = time.perf_counter() - start
        yield {"method": method, "seed": seed, "epoch": epoch + 1, "loss": loss,
               "train_error": error_rate(model, images[0], noisy),
               "test_error": error_rate(model, images[1], labels[1]), "seconds": seconds}


def percent(values):
    """Mean and standard error."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def table(log, methods):
    print("| method | last epoch | best epoch | at epoch | training error | s per epoch |")
    print("| ------ | ---------- | ---------- | -------- | -------------- | ----------- |")
    for method in methods:
        lines = [line for line in log if line["method"] == method]
        last = max(line["epoch"] for line in lines)
        of = {epoch: [line for line in lines if line["epoch"] == epoch] for epoch in range(1, last + 1)}
        best = min(of, key=lambda epoch: statistics.mean(line["test_error"] for line in of[epoch]))
        test = {epoch: [line["test_error"] for line in of[epoch]] for epoch in of}
        print(f"| {method.upper()} | {percent(test[last])} | {percent(test[best])} | {best} "
              f"| {percent([line['train_error'] for line in of[last]])} "
              f"| {statistics.median(line['seconds'] for line in lines):.2f} |")


def main():
    args = options()
    if args.threads:
        torch.set_num_threads(args.threads)
    images, labels = load(args.data, args.device)
    methods = [args.only] if args.only else ["sgd", "sam"]
    log = []
    for seed in range(args.seed, args.seed + args.seeds):
        for method in methods:
            log += train(args, method, seed, images, labels)
    if args.log:
        args.log.write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    print(f"PyTorch {torch.__version__}, {len(labels[0])} training images, {args.noise:.0%} wrong labels, {args.model}, "
          f"SAM ρ = {args.rho}: test error in %, mean ± standard error over {args.seeds} seeds\n")
    table(log, methods)


if __name__ == "__main__":
    main()
