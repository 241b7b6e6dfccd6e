#!/usr/bin/env python3
"""What `gpu.sh build` takes to a GPU machine, and what `gpu.sh run` finds there.

  bundle.py executables MESSAGES --tests T.. --programs P..   name and path of what cargo has built, one a line
  bundle.py pack FOLDER ARCHIVE                               all files together: alike, they shrink to a third
  bundle.py unpack ARCHIVE FOLDER
  bundle.py libraries                                         folders of NVIDIA's libraries, for LD_LIBRARY_PATH
  bundle.py missing FOLDER                                    deletes the stubs of libraries that this machine has
"""
import argparse
import ctypes
import glob
import json
import os
import sys
import tarfile


def executables(messages, tests, programs):
    """From cargo's messages in JSON, one a line. Tests are named `test-..`: one may be called like a program."""
    with open(messages, encoding="utf-8") as lines:
        for line in lines:
            message = json.loads(line)
            path = message.get("executable")
            if not path:
                continue
            name = message["target"]["name"]
            if message["profile"]["test"]:
                if name in tests:
                    print(f"test-{name}", path)
            elif name in programs:
                print(name, path)


def libraries():
    """Where pip puts them, the driver's in containers, and the toolkit's."""
    found = {os.path.dirname(file) for root in sys.path for file in glob.glob(f"{root}/nvidia/*/lib/lib*.so*")}
    print(":".join([*sorted(found), "/usr/local/nvidia/lib64", "/usr/local/cuda/lib64"]))


def missing(folder):
    """A stub that shadowed the machine's own library would make its GPU disappear."""
    for name in os.listdir(folder):
        try:
            ctypes.CDLL(name)
        except OSError:
            print(f"{name} is not on this machine: its functions return an error")
        else:
            os.remove(os.path.join(folder, name))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("executables")
    command.add_argument("messages")
    command.add_argument("--tests", nargs="+", required=True)
    command.add_argument("--programs", nargs="+", required=True)
    command = commands.add_parser("pack")
    command.add_argument("folder")
    command.add_argument("archive")
    command = commands.add_parser("unpack")
    command.add_argument("archive")
    command.add_argument("folder")
    commands.add_parser("libraries")
    commands.add_parser("missing").add_argument("folder")
    options = parser.parse_args()
    if options.command == "executables":
        executables(options.messages, options.tests, options.programs)
    elif options.command == "pack":
        with tarfile.open(options.archive, "w:xz", preset=9) as archive:
            archive.add(options.folder, ".")
    elif options.command == "unpack":
        with tarfile.open(options.archive) as archive:
            archive.extractall(options.folder)
    elif options.command == "libraries":
        libraries()
    else:
        missing(options.folder)


if __name__ == "__main__":
    main()
