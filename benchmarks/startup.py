"""What it costs to start: `import ornstein` beside `import torch`, and `ornstein --help`, as medians of fresh processes.

python benchmarks/startup.py [--runs 9]
"""

import argparse
import statistics
import subprocess
import sys
import time


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="processes of each kind, taken in turn")
    runs = parser.parse_args().runs
    uses_all = "import ornstein as orn; orn.sample, orn.train, orn.load, orn.UNet, orn.Heun, orn.CosineVP"
    kinds = {
        "import torch": (sys.executable, "-c", "import torch"),
        "import ornstein, torch": (sys.executable, "-c", "import ornstein, torch"),
        "import torch and every name of the first minute": (sys.executable, "-c", f"import torch; {uses_all}"),
        "ornstein --help": (sys.executable, "-m", "ornstein", "--help"),
        "ornstein train --help": (sys.executable, "-m", "ornstein", "train", "--help"),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(runs):
        for name, command in kinds.items():
            times[name].append(seconds(*command))
    for name, values in times.items():
        print(f"{name:50} {statistics.median(values):6.3f} s (least {min(values):.3f})")


if __name__ == "__main__":
    main()
