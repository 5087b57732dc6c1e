"""One implementation in a process of its own: commands and answers are lines of JSON.

{"make": [layers, batch, samples, count]}  compiles and runs once: seconds, FLOPs, bound
{"run": 1}                                 seconds of a step, peak memory since "make"
"""

import ctypes
import gc
import json
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # or an earlier run's would be loaded


def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def memory(field):
    """A line of the process's status, in megabytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def main():
    library, _, name = sys.argv[1].partition(":")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    if library == "torch":
        import torch_steps as module
    else:
        import jax_steps as module
    trim = ctypes.CDLL("libc.so.6").malloc_trim
    step, count, before, warm = None, 1, 0.0, False
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "make" in command:
                layers, batch, samples, count = command["make"]
                if not warm:  # the first program of a process pays for what no later one does
                    module.Step(name, 1, 2, 2, 1)()
                    warm = True
                step = None
                gc.collect()
                trim(0)
                before = memory("VmRSS")
                begun = time.perf_counter()
                step = module.Step(name, layers, batch, samples, count)
                seconds = time.perf_counter() - begun
                answer = {"compile_seconds": seconds, "flops": step.flops(), "loss": step()}
                gc.collect()
                trim(0)
                reset_peak()
            else:
                begun = time.perf_counter()
                for _ in range(1 if library == "jax" else count):
                    step()
                seconds = (time.perf_counter() - begun) / count
                answer = {"seconds": seconds, "megabytes": memory("VmHWM") - before}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
