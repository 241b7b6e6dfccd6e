#!/usr/bin/env python3
"""Times a step without SAM and a SAM step in PyTorch, as `bench` does here; prints one line of JSON with the same keys."""
import argparse
import json
import os
import resource
import statistics
import time

import networks
import torch
import torch.nn.functional as F
from sam import Sam


def options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help=f"network: {networks.NAMES}")
    parser.add_argument("--batch", type=int, help="images, or texts, in a batch [default: 128, 32 for wrn-28-10, gpt and "
                        "efficientnet-lite0]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the CPU [default: all]")
    parser.add_argument("--iters", type=int, default=5, help="how often each part is timed [default: 5]")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--channels-last", action="store_true", help="NHWC")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16")
    parser.add_argument("--tf32", action="store_true", help="let products of f32 round to TF32")
    return parser.parse_args()


def main():
    args = options()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    if args.tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True

    device = torch.device(args.device)
    batch = args.batch or (32 if args.model in {"wrn-28-10", "gpt", "efficientnet-lite0"} else 128)
    shape = networks.default_shape(args.model)
    if args.model == "gpt":
        model = networks.network(args.model, shape, classes=256).to(device)
        x, y = (torch.randint(256, (batch, *shape), device=device) for _ in range(2))
        y = y.flatten()
    else:
        model = networks.network(args.model, shape).to(device)
        x = torch.randn(batch, *shape, device=device)
        y = torch.randint(10, (batch,), device=device)
    if args.channels_last and x.dim() == 4:
        model = model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    parameters = list(model.parameters())
    if args.model in {"vit-tiny", "gpt"}:
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=True)
    else:
        optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=True)
    sam = Sam(parameters, rho=0.05)
    forward = torch.compile(model) if args.compile else model

    def backward():
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        return loss

    def plain_pass():
        backward()
        optimizer.zero_grad()

    def sgd_step():
        backward()
        optimizer.step()
        optimizer.zero_grad()

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(work):
        wait()
        start = time.perf_counter()
        work()
        wait()
        return 1e3 * (time.perf_counter() - start)

    times = {}
    warm_up = 2
    for iteration in range(warm_up + args.iters):
        took = {
            "forward_backward": milliseconds(plain_pass),
            "sgd": milliseconds(sgd_step),
            "sam": milliseconds(lambda: sam.step(backward, optimizer)),
        }
        backward()
        took |= {
            "optimizer": milliseconds(optimizer.step),
            "perturb": milliseconds(sam.perturb),
            "restore": milliseconds(sam.restore),
        }
        optimizer.zero_grad()
        if iteration >= warm_up:
            for part, value in took.items():
                times.setdefault(part, []).append(value)

    wait()
    start = time.perf_counter()
    sam.step(backward, optimizer)
    enqueued = 1e3 * (time.perf_counter() - start)
    median = {part: statistics.median(values) for part, values in times.items()}
    overhead = median["sam"] / (2 * median["forward_backward"] + median["optimizer"])
    print(json.dumps({
        "layers": f"torch {torch.__version__}",
        "model": args.model,
        "optimizer": type(optimizer).__name__.lower(),
        "batch": batch,
        "threads": args.threads,
        "device": args.device,
        "dtype": "bf16" if args.bf16 else "f32",
        "tf32": args.tf32,
        "channels_last": args.channels_last,
        "compile": args.compile,
        "params": sum(parameter.numel() for parameter in parameters),
        "median_ms": {part: round(value, 3) for part, value in median.items()},
        "min_ms": {part: round(min(values), 3) for part, values in times.items()},
        "loss": backward().item(),
        "sam_overhead": round(overhead, 3),
        "sam_enqueued_ms": round(enqueued, 3),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }))


if __name__ == "__main__":
    main()
