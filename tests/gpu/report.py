#!/usr/bin/env python3
"""Prints a short table of what `gpu.sh run` has written to a log: report.py LOG

Lines that begin with RESULT or EPOCH are read; what is missing in the log is a dash in the table.
"""
import itertools
import json
import statistics
import sys

ROW = "{:10} {:7} {:7} {:>8} {:>8} {:>9} {:>11} {:>14} {:>9} {:>9}".format


def read(path):
    """The tests' counts, the JSON lines by name, the epochs, and how many convolutions cuDNN had no plan for."""
    tests, results, epochs, without_plan = None, {}, [], 0
    with open(path, encoding="utf-8", errors="replace") as log:
        for line in log:
            without_plan += "cuDNN has no plan" in line
            if line.startswith("RESULT "):
                result = json.loads(line.removeprefix("RESULT "))
                if "tests" in result:
                    tests = result["tests"]
                else:
                    results[result["name"].strip()] = result["line"]
            elif line.startswith("EPOCH "):
                epochs.append(json.loads(line.removeprefix("EPOCH ")))
    return tests, results, epochs, without_plan


def sam_step(line):
    return line["median_ms"]["sam"] if line else None


def number(value):
    return f"{value:.2f}" if value else "-"


def ratio(a, b):
    return f"{a / b:.3f}" if a and b else "-"


def steps(results):
    """SAM steps of our networks beside PyTorch's."""
    print("SAM step in ms; overhead: SAM step / (2 forward and backward passes + optimizer step); enqueued: ms after which the")
    print("host is free again\n")
    print(ROW("network", "dtype", "format", "ours", "PyTorch", "compiled", "ours/eager", "ours/compiled", "overhead", "enqueued"))
    for model, dtype, order in itertools.product(["wrn-28-10", "resnet18"], ["--tf32", "--bf16"], ["", "--channels-last"]):
        line = results.get(f"ours {model} {dtype} {order}".strip())
        ours = sam_step(line)
        eager = sam_step(results.get(f"torch {model} {dtype}"))
        compiled = sam_step(results.get(f"torch {model} {dtype} --compile"))
        print(ROW(model, dtype[2:], "NHWC" if order else "NCHW", number(ours), number(eager), number(compiled),
                  ratio(ours, eager), ratio(ours, compiled), number(line and line["sam_overhead"]),
                  number(line and line["sam_enqueued_ms"])))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tests, results, epochs, without_plan = read(sys.argv[1])
    counts = ", ".join(f"{name} {count}" for name, count in tests.items()) if tests else "not run"
    print(f"\ntest binaries: {counts}")
    steps(results)
    if without_plan:
        print(f"cuDNN had no plan for {without_plan} convolutions: the log says why")
    for name, line in results.items():
        if name.startswith("arithmetic") and line:
            print(f"{name} parameters: SAM's arithmetic reaches {line['of_copy']:.3f} of the throughput of a copy")
    if epochs:
        torch = sam_step(results.get("torch wrn-16-4 --bf16"))
        seconds = statistics.median(epoch["seconds"] for epoch in epochs)
        print(f"wrn-16-4: {seconds:.2f} s an epoch; 390 steps of PyTorch: {number(torch and torch * 0.39)} s; "
              f"last test error {epochs[-1]['test_error']}")


if __name__ == "__main__":
    main()
