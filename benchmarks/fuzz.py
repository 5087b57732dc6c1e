"""Programs at random for each front-end, judged by evaluators that share no code with gdregs.

    python benchmarks/fuzz.py --frontend core --programs 150 --seed 1000
    python benchmarks/fuzz.py --frontend torch --minutes 60 --seed 1000
    python benchmarks/fuzz.py --frontend numpyro --show 1017   # the program of a seed
    python benchmarks/fuzz.py --frontend pyro --minimise 1017  # the smallest that fails alike
    python benchmarks/fuzz.py --mutants                        # ten faults put into the source

What is found goes into results/fuzz.json; a run that was interrupted goes on where it ended.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

from fuzzing import record
from fuzzing.frontends import runner_of, set_up, text_of
from fuzzing.grammar import FRONTENDS, generate
from fuzzing.judge import judge

RESULTS = Path(__file__).parents[1] / "results"


def run(arguments: argparse.Namespace) -> int:
    """Judge programs until there are enough, or time is up; returns the number of failures."""
    results = record.Record(arguments.results, arguments.frontend, fresh=arguments.fresh)
    make, begun, failures = runner_of(arguments.frontend), time.monotonic(), 0
    for seed in range(arguments.seed, arguments.seed + arguments.programs):
        if seed in results.seeds:
            continue
        if time.monotonic() - begun > 60 * arguments.minutes:
            break
        program = generate(arguments.frontend, seed)
        outcome = judge(program, make)
        results.add(seed, outcome)
        print(
            f"{arguments.frontend} {seed}: {results.line()} | {outcome.kind}, {outcome.seconds} s"
        )
        if outcome.kind != "right":
            print(f"    {outcome.text}", flush=True)
        failures += outcome.is_failure
        if failures and arguments.until_failure:
            break
    results.write()
    return failures


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frontend", choices=FRONTENDS, default="core")
    parser.add_argument("--programs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no program after these")
    parser.add_argument("--results", type=Path, default=RESULTS / "fuzz.json")
    parser.add_argument("--fresh", action="store_true", help="forget what this front-end had")
    parser.add_argument("--show", type=int, help="print the program of this seed")
    parser.add_argument("--minimise", type=int, help="shrink the program of this seed")
    parser.add_argument("--until-failure", action="store_true")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--only", default="", help="mutants that have this in their names")
    return parser.parse_args()


def main() -> int:
    """Do what the command asks."""
    arguments = parse()
    warnings.simplefilter("ignore")
    if arguments.show is not None:
        print(text_of(generate(arguments.frontend, arguments.show)))
        return 0
    if arguments.mutants:
        from fuzzing import mutants

        return mutants.run(arguments)
    set_up(arguments.frontend)
    if arguments.minimise is not None:
        from fuzzing.minimise import minimise

        small = minimise(
            generate(arguments.frontend, arguments.minimise),
            runner_of(arguments.frontend),
            minutes=min(arguments.minutes, 10),
        )
        print(text_of(small))
        return 0
    return min(run(arguments), 100)


if __name__ == "__main__":
    sys.exit(main())
